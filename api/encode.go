package api

import (
	"encoding/base64"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
)

// Batches are answered by writing the JSON of v1.Batch by hand: a ciphertext goes
// from its bytes to the answer's base64 once, where encoding the structs would copy
// it twice and look at each of its characters for quotes.

// answerBatch answers with the results of calls, in order.
func (r *request) answerBatch(calls []kms.Call, reference func(i int) string, appendResult func(dst []byte, c *kms.Call) []byte) error {
	buf := jsonhttp.Buffer()
	defer jsonhttp.Release(buf)
	size := 0
	for i := range calls {
		size += base64.StdEncoding.EncodedLen(len(calls[i].Output)) + 128 // the fields around it
	}
	buf.Grow(size)
	dst := append(buf.AvailableBuffer(), `{"items":[`...)
	for i := range calls {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = appendItem(dst, &calls[i], reference(i), appendResult); err != nil {
			return err
		}
	}
	buf.Write(append(dst, `]}`...))
	jsonhttp.WriteRaw(r.w, http.StatusOK, buf.Bytes())
	return nil
}

func appendItem(dst []byte, c *kms.Call, reference string, appendResult func(dst []byte, c *kms.Call) []byte) ([]byte, error) {
	dst = append(dst, '{')
	if c.Err == nil {
		dst = appendResult(dst, c)
	} else {
		p := fault.ProblemOf(public(c.Err), "")
		raw, err := json.Marshal(v1.ItemError{Code: p.Code, Detail: p.Detail})
		if err != nil {
			return dst, err
		}
		dst = append(append(dst, `"error":`...), raw...)
	}
	if reference != "" {
		var err error
		if dst, err = jsontext.AppendQuote(append(dst, `,"reference":`...), reference); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// appendSealed appends the fields of a v1.SealedItem. No value needs quoting: they are
// base64, numbers, and names of algorithms.
func appendSealed(dst []byte, c *kms.Call) []byte {
	dst = envelope.AppendText(append(dst, `"ciphertext":"`...), c.Output)
	dst = appendKey(append(dst, '"'), c)
	dst = append(append(dst, `,"algorithm":"`...), c.KeyAlgorithm.String()...)
	return append(dst, '"')
}

// appendOpened appends the fields of a v1.OpenedItem.
func appendOpened(dst []byte, c *kms.Call) []byte {
	dst = base64.StdEncoding.AppendEncode(append(dst, `"plaintext":"`...), c.Output)
	return appendKey(append(dst, '"'), c)
}

func appendKey(dst []byte, c *kms.Call) []byte {
	dst = strconv.AppendUint(append(dst, `,"key":`...), uint64(c.KeyIndex), 10)
	return strconv.AppendUint(append(dst, `,"version":`...), uint64(c.KeyVersion), 10)
}
