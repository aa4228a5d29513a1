package sdk

import (
	"context"
	"net/http"

	v1 "github.com/trikey/trikey/api/v1"
)

// SealedResult is the result of one item of a batch: Sealed, or Err.
type SealedResult struct {
	Sealed
	Err error
}

// OpenedResult is the result of one item of a batch: Opened, or Err.
type OpenedResult struct {
	Opened
	Err error
}

// A batch goes to the service in parts of at most maxItems items and, by estimate,
// maxBytes bytes, under the service's limits.
const (
	maxItems = v1.MaxItems
	maxBytes = v1.MaxBody - 64<<10
	perItem  = 64 // bytes of JSON around an item's fields, at most
)

// EncryptBatch seals many plaintexts, of any keys. The results are in the order of
// the requests; one that fails has its own error and does not fail the others. The
// error returned is about the call as a whole: then there are no results.
func (c *Client) EncryptBatch(ctx context.Context, requests []EncryptRequest) ([]SealedResult, error) {
	if c.rpc != nil {
		if results, served, err := c.encryptBatch(ctx, requests); served {
			return results, err
		}
	}
	return inParts(requests,
		func(r EncryptRequest) int {
			return len(r.Plaintext)*4/3 + len(r.Key) + len(r.Algorithm) + size(r.Context)
		},
		func(part []EncryptRequest) ([]SealedResult, error) {
			in := v1.Batch[v1.EncryptItem]{Items: make([]v1.EncryptItem, len(part))}
			for i, r := range part {
				in.Items[i] = v1.EncryptItem{Key: r.Key, Plaintext: present(r.Plaintext), Context: r.Context, Algorithm: r.Algorithm}
			}
			return c.sealedBatch(ctx, "/v1/batch/encrypt", in, len(part))
		})
}

// DecryptBatch opens many ciphertexts, of any keys and versions, as
// EncryptBatch seals. The Key of a request is not looked at: each ciphertext names
// its own.
func (c *Client) DecryptBatch(ctx context.Context, requests []DecryptRequest) ([]OpenedResult, error) {
	if c.rpc != nil {
		if results, served, err := c.decryptBatch(ctx, requests); served {
			return results, err
		}
	}
	return inParts(requests,
		func(r DecryptRequest) int { return len(r.Ciphertext) + size(r.Context) },
		func(part []DecryptRequest) ([]OpenedResult, error) {
			in := v1.Batch[v1.DecryptItem]{Items: make([]v1.DecryptItem, len(part))}
			for i, r := range part {
				in.Items[i] = v1.DecryptItem{Ciphertext: r.Ciphertext, Context: r.Context}
			}
			out, err := batch[v1.OpenedItem](ctx, c, "/v1/batch/decrypt", in, len(part))
			results := make([]OpenedResult, len(out))
			for i, item := range out {
				if results[i].Err = item.Error.Err(); item.Plaintext != nil {
					results[i].Opened = Opened{Plaintext: *item.Plaintext, Key: item.Key, Version: item.Version}
				}
			}
			return results, err
		})
}

// ReEncryptBatch seals many ciphertexts anew, as EncryptBatch seals.
func (c *Client) ReEncryptBatch(ctx context.Context, requests []ReEncryptRequest) ([]SealedResult, error) {
	if c.rpc != nil {
		if results, served, err := c.reEncryptBatch(ctx, requests); served {
			return results, err
		}
	}
	return inParts(requests,
		func(r ReEncryptRequest) int {
			n := len(r.Ciphertext) + size(r.Context) + len(r.To.Key) + len(r.To.Algorithm) + perItem
			if r.To.Context != nil {
				n += size(*r.To.Context)
			}
			return n
		},
		func(part []ReEncryptRequest) ([]SealedResult, error) {
			in := v1.Batch[v1.ReencryptItem]{Items: make([]v1.ReencryptItem, len(part))}
			for i, r := range part {
				in.Items[i] = v1.ReencryptItem{Ciphertext: r.Ciphertext, Context: r.Context, To: &r.To}
			}
			return c.sealedBatch(ctx, "/v1/batch/reencrypt", in, len(part))
		})
}

func (c *Client) sealedBatch(ctx context.Context, path string, in any, n int) ([]SealedResult, error) {
	out, err := batch[v1.SealedItem](ctx, c, path, in, n)
	results := make([]SealedResult, len(out))
	for i, item := range out {
		results[i] = SealedResult{
			Sealed: Sealed{Ciphertext: item.Ciphertext, Key: item.Key, Version: item.Version, Algorithm: item.Algorithm},
			Err:    item.Error.Err(),
		}
	}
	return results, err
}

// batch sends one part and sees that it gets as many results.
func batch[Out any](ctx context.Context, c *Client, path string, in any, n int) ([]Out, error) {
	var out v1.Batch[Out]
	if err := c.call(ctx, http.MethodPost, path, in, &out); err != nil {
		return nil, err
	}
	if len(out.Items) != n {
		return nil, ErrUnavailable
	}
	return out.Items, nil
}

// size bounds the bytes of a context in JSON: a byte takes at most six (\u0000).
func size(c Context) int {
	n := 0
	for k, v := range c {
		n += 6*(len(k)+len(v)) + 6
	}
	return n
}

// inParts cuts requests into parts that the service takes, and joins the results.
func inParts[In, Out any](requests []In, size func(In) int, send func([]In) ([]Out, error)) ([]Out, error) {
	results := make([]Out, 0, len(requests))
	for len(requests) > 0 {
		n, bytes := 0, 0
		for n < len(requests) && n < maxItems {
			bytes += size(requests[n]) + perItem
			if n > 0 && bytes > maxBytes {
				break
			}
			n++
		}
		part, err := send(requests[:n])
		if err != nil {
			return nil, err
		}
		results = append(results, part...)
		requests = requests[n:]
	}
	return results, nil
}
