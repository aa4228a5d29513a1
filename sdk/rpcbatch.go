package sdk

import (
	"context"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
)

// Batches over gRPC: their items are operations like any other, which go out together.

func (c *Client) encryptBatch(ctx context.Context, requests []EncryptRequest) ([]SealedResult, bool, error) {
	return together(ctx, c.rpc, requests, func(r *EncryptRequest) (*pb.Operation, error) { return encryption(r), nil }, sealedResult)
}

func (c *Client) decryptBatch(ctx context.Context, requests []DecryptRequest) ([]OpenedResult, bool, error) {
	return together(ctx, c.rpc, requests, func(r *DecryptRequest) (*pb.Operation, error) {
		raw, err := binaryOf(r.Ciphertext)
		return decryption(&DecryptRequest{Context: r.Context}, raw), err
	}, func(r *pb.Result, err error) OpenedResult {
		return OpenedResult{openedOf(r.GetOpened()), err}
	})
}

func (c *Client) reEncryptBatch(ctx context.Context, requests []ReEncryptRequest) ([]SealedResult, bool, error) {
	return together(ctx, c.rpc, requests, func(r *ReEncryptRequest) (*pb.Operation, error) {
		raw, err := binaryOf(r.Ciphertext)
		return reencryption(r, raw), err
	}, sealedResult)
}

func sealedResult(r *pb.Result, err error) SealedResult {
	return SealedResult{sealedOf(r.GetSealed()), err}
}

// together has a batch carried out. Items that cannot be sent have their errors.
func together[In, Out any](
	ctx context.Context, l *links, requests []In, operation func(*In) (*pb.Operation, error), result func(*pb.Result, error) Out,
) ([]Out, bool, error) {
	out := make([]Out, len(requests))
	ops, at := make([]*pb.Operation, 0, len(requests)), make([]int, 0, len(requests))
	for i := range requests {
		op, err := operation(&requests[i])
		if err != nil {
			out[i] = result(nil, err)
			continue
		}
		ops, at = append(ops, op), append(at, i)
	}
	if len(ops) == 0 {
		return out, true, nil
	}
	results, served, err := l.do(ctx, ops...)
	if !served || err != nil {
		return nil, served, err
	}
	for j, r := range results {
		out[at[j]] = result(r, errorOfItem(r.GetError()))
	}
	return out, true, nil
}
