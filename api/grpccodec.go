package api

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
)

// wipingPool is a pool of buffers that are wiped when they come back: messages are in them.
type wipingPool struct{ mem.BufferPool }

// Put is that of mem.BufferPool.
func (p wipingPool) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	p.BufferPool.Put(b)
}

// incoming is a message with its size, so that nobody has to count it again.
type incoming struct {
	pb.DoRequest
	size int
}

// grpcCodec is that of Protocol Buffers, which tells an incoming message its size.
type grpcCodec struct{ encoding.CodecV2 }

// Unmarshal is that of encoding.CodecV2.
func (c grpcCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*incoming); ok {
		in.size = data.Len()
		return c.CodecV2.Unmarshal(data, &in.DoRequest)
	}
	return c.CodecV2.Unmarshal(data, v)
}
