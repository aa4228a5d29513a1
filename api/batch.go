package api

import (
	"errors"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
)

// batch is the items of a request, and for each the reason why it could not be
// read; nil for almost all.
type batch[T any] struct {
	items  []T
	errors []error // nil where every item could be read
}

func (b *batch[T]) err(i int) error {
	if b.errors == nil {
		return nil
	}
	return b.errors[i]
}

// readBatch decodes the items of a batch. Where one of them is not what it should
// be, the others are served all the same: they are decoded once more, one by one.
func readBatch[T any](r *request) (batch[T], error) {
	body := jsonhttp.Buffer()
	defer jsonhttp.Release(body)
	if err := jsonhttp.CheckType(r.Request, jsonhttp.ContentType); err != nil {
		return batch[T]{}, err
	}
	if err := jsonhttp.ReadBody(r.in, r.Request, v1.MaxBody, body); err != nil {
		return batch[T]{}, err
	}
	var in v1.Batch[T]
	var bad *json.SemanticError
	err := json.Unmarshal(body.Bytes(), &in, json.RejectUnknownMembers(true))
	if errors.As(err, &bad) {
		return readOneByOne[T](body.Bytes())
	}
	if err != nil {
		return batch[T]{}, jsonhttp.Unmarshal(body.Bytes(), &in) // the same error, in words
	}
	return batch[T]{items: in.Items}, checkCount(in.Items == nil, len(in.Items))
}

func readOneByOne[T any](body []byte) (batch[T], error) {
	var in v1.Batch[jsontext.Value]
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return batch[T]{}, err
	}
	if err := checkCount(in.Items == nil, len(in.Items)); err != nil {
		return batch[T]{}, err
	}
	b := batch[T]{items: make([]T, len(in.Items)), errors: make([]error, len(in.Items))}
	for i, raw := range in.Items {
		if b.errors[i] = jsonhttp.Unmarshal(raw, &b.items[i]); b.errors[i] != nil {
			// What names the item to its caller is kept where it can be read.
			var known struct {
				Reference string         `json:"reference"`
				Rest      jsontext.Value `json:",unknown"`
			}
			if json.Unmarshal(raw, &known) == nil {
				keepReference(&b.items[i], known.Reference)
			}
		}
	}
	return b, nil
}

func keepReference(item any, reference string) {
	switch item := item.(type) {
	case *v1.EncryptItem:
		item.Reference = reference
	case *v1.DecryptItem:
		item.Reference = reference
	case *v1.ReencryptItem:
		item.Reference = reference
	}
}

func checkCount(missing bool, n int) error {
	switch {
	case missing:
		return required("items")
	case n > v1.MaxItems:
		return fault.New(fault.TooLarge, "items: %d are given, at most %d are allowed", n, v1.MaxItems)
	}
	return nil
}

// doBatch carries out the calls that prepare makes of the items.
func doBatch[T any](s *server, r *request, b batch[T], prepare func(*T) (kms.Call, error)) ([]kms.Call, error) {
	r.items = len(b.items)
	calls := make([]kms.Call, 0, len(b.items))
	at := make([]int, 0, len(b.items))
	all := make([]kms.Call, len(b.items))
	for i := range b.items {
		c, err := kms.Call{}, b.err(i)
		if err == nil {
			c, err = prepare(&b.items[i])
		}
		if err != nil {
			all[i].Err = err
			continue
		}
		calls = append(calls, c)
		at = append(at, i)
	}
	if err := s.cfg.Service.Do(r.Context(), r.caller, calls); err != nil {
		return nil, err
	}
	for j := range calls {
		all[at[j]] = calls[j]
	}
	r.calls = all
	return all, nil
}

func (s *server) batchEncrypt(r *request) error {
	b, err := readBatch[v1.EncryptItem](r)
	if err != nil {
		return err
	}
	calls, err := doBatch(s, r, b, func(item *v1.EncryptItem) (kms.Call, error) {
		switch {
		case item.Key == "":
			return kms.Call{}, required("key")
		case item.Plaintext == nil:
			return kms.Call{}, required("plaintext")
		}
		return kms.Call{
			Kind: hsm.Encrypt, Key: string(item.Key), Algorithm: item.Algorithm, Context: envelope.Context(item.Context),
			Input: item.Plaintext, Output: make([]byte, 0, len(item.Plaintext)+envelope.Overhead),
		}, nil
	})
	if err != nil {
		return err
	}
	return r.answerBatch(calls, func(i int) string { return b.items[i].Reference }, appendSealed)
}

func (s *server) batchDecrypt(r *request) error {
	b, err := readBatch[v1.DecryptItem](r)
	if err != nil {
		return err
	}
	calls, err := doBatch(s, r, b, func(item *v1.DecryptItem) (kms.Call, error) {
		if item.Ciphertext == "" {
			return kms.Call{}, required("ciphertext")
		}
		input, err := decodeText(item.Ciphertext)
		return kms.Call{Kind: hsm.Decrypt, Context: envelope.Context(item.Context), Input: input}, err
	})
	if err != nil {
		return err
	}
	return r.answerBatch(calls, func(i int) string { return b.items[i].Reference }, appendOpened)
}

func (s *server) batchReencrypt(r *request) error {
	b, err := readBatch[v1.ReencryptItem](r)
	if err != nil {
		return err
	}
	calls, err := doBatch(s, r, b, func(item *v1.ReencryptItem) (kms.Call, error) {
		if item.Ciphertext == "" {
			return kms.Call{}, required("ciphertext")
		}
		input, err := decodeText(item.Ciphertext)
		return reencryption(input, item.Context, item.To), err
	})
	if err != nil {
		return err
	}
	return r.answerBatch(calls, func(i int) string { return b.items[i].Reference }, appendSealed)
}
