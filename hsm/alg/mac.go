package alg

import "github.com/trikey/trikey/internal/fault"

// Authenticate returns the message authentication code of a message: HMAC (RFC 2104, FIPS
// 198-1) over SHA-256 or SM3, in full length.
func Authenticate(id ID, key, message []byte) ([]byte, error) {
	a, err := Lookup(id)
	if err == nil && a.Class != Authentication {
		err = fault.New(fault.AlgorithmNotAllowed, "algorithm: %s does not compute codes", a.Name)
	}
	if err != nil {
		return nil, err
	}
	return mac(a.Hash, key, message), nil
}
