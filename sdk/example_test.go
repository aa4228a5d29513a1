package sdk_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/trikey/trikey/sdk"
)

// service stands for a Trikey service, so that the examples run.
func service(answer string) (address string, roots *x509.CertPool, stop func()) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, roots, s.Close
}

func ExampleClient_Encrypt() {
	address, roots, stop := service(`{"ciphertext":"tk1.AQEAAAAH…","key":7,"version":1,"algorithm":"aes-256-gcm"}`)
	defer stop()

	client, err := sdk.New(sdk.Config{
		Addresses: []string{address}, // every node of the service
		RootCAs:   roots,             // or CAFile
		AppKey:    "akexample",
		AppSecret: "of trikey app create", // or AppSecretFile
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	sealed, err := client.Encrypt(context.Background(), sdk.EncryptRequest{
		Key:       sdk.Index(7),
		Plaintext: []byte("see you at eight"),
		Context:   sdk.Context{"app": "im", "conversation": "c-4711"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("store", sealed.Ciphertext, "of key", sealed.Key, "version", sealed.Version)
	// Output: store tk1.AQEAAAAH… of key 7 version 1
}

func ExampleClient_DecryptBatch() {
	address, roots, stop := service(`{"items":[{"plaintext":"aGVsbG8=","key":7,"version":1},{"error":{"code":"decrypt_failed"}}]}`)
	defer stop()
	client, err := sdk.New(sdk.Config{Addresses: []string{address}, RootCAs: roots})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	// A page of history: any keys and versions in one call.
	page, err := client.DecryptBatch(context.Background(), []sdk.DecryptRequest{
		{Ciphertext: "tk1.AQEAAAAH…", Context: sdk.Context{"conversation": "c-1"}},
		{Ciphertext: "tk1.AQEAAAAI…", Context: sdk.Context{"conversation": "c-1"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, message := range page {
		if errors.Is(message.Err, sdk.ErrDecryptFailed) {
			fmt.Println("not readable")
			continue
		}
		fmt.Printf("%s\n", message.Plaintext)
	}
	// Output:
	// hello
	// not readable
}
