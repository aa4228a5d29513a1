package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/sdk"
)

// rpc calls the service over gRPC: as a plain client does, one call an operation, and
// by the SDK, which gathers operations of concurrent callers.
type rpc struct {
	conn   *grpc.ClientConn
	crypto pb.CryptoClient
	auth   metadata.MD
	sdk    *sdk.Client
	size   int
}

var rpcBinding = sdk.Context{"app": "im", "chat_type": "group", "conversation": "c-4711"}

func (b *bed) newRPC(size int) (*rpc, error) {
	config := &tls.Config{RootCAs: b.roots, MinVersion: tls.VersionTLS13}
	conn, err := grpc.NewClient("passthrough:///"+b.rpcAddress, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return nil, err
	}
	client, err := sdk.New(sdk.Config{
		Addresses: []string{"https://" + b.trikey.address}, GRPC: []string{b.rpcAddress}, AppKey: b.key, AppSecret: b.secret, RootCAs: b.roots,
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(b.key+":"+b.secret))
	return &rpc{conn, pb.NewCryptoClient(conn), metadata.Pairs("authorization", basic), client, size}, nil
}

func (r *rpc) close() error {
	r.sdk.Close()
	return r.conn.Close()
}

// calls are the cases over gRPC.
func (r *rpc) calls(ctx context.Context) ([]load, error) {
	plaintext := make([]byte, r.size)
	sealed, err := r.sdk.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: plaintext, Context: rpcBinding})
	if err != nil {
		return nil, err
	}
	ctx = metadata.NewOutgoingContext(ctx, r.auth)
	encrypt := func() error {
		_, err := r.sdk.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: plaintext, Context: rpcBinding})
		return err
	}
	decrypt := func() error {
		_, err := r.sdk.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: rpcBinding})
		return err
	}
	page := make([]sdk.DecryptRequest, 100)
	for i := range page {
		page[i] = sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: rpcBinding}
	}
	var pairs []*pb.Pair
	for k, v := range rpcBinding {
		pairs = append(pairs, &pb.Pair{Key: k, Value: v})
	}
	var all []load
	for _, c := range []int{1, 16, 64} {
		all = append(all, load{name: "gRPC unary encrypt", concurrency: c, items: 1, call: func() error {
			_, err := r.crypto.Encrypt(ctx, &pb.EncryptRequest{Key: "7", Plaintext: plaintext, Context: pairs})
			return err
		}})
	}
	for _, c := range []int{1, 16, 64, 1024} {
		all = append(all, load{name: "SDK stream, encrypt", concurrency: c, items: 1, call: encrypt},
			load{name: "SDK stream, decrypt", concurrency: c, items: 1, call: decrypt})
	}
	for _, c := range []int{1, 16} {
		all = append(all, load{name: "SDK stream, page of 100", concurrency: c, items: 100, call: func() error {
			opened, err := r.sdk.DecryptBatch(ctx, page)
			if err == nil {
				err = opened[99].Err
			}
			return err
		}})
	}
	return all, nil
}

// repeat makes calls for a time, and returns how long each took.
func repeat(l load, until time.Time) (latencies []time.Duration, err error) {
	for start := time.Now(); start.Before(until); {
		if err := l.call(); err != nil {
			return latencies, fmt.Errorf("%s: %w", l.name, err)
		}
		now := time.Now()
		latencies = append(latencies, now.Sub(start))
		start = now
	}
	return latencies, nil
}

// callers runs f for each of a case's callers and joins what they measured.
func callers(n int, f func() ([]time.Duration, error)) ([]time.Duration, error) {
	var mu sync.Mutex // guards latencies and failed
	var latencies []time.Duration
	var failed error
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			mine, err := f()
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, mine...)
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	slices.Sort(latencies)
	return latencies, failed
}
