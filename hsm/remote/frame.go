package remote

import (
	"math/bits"
	"runtime"
	"sync"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one is built on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// frame is a message that is put together of parts which callers have marshalled, each on
// its own processor: a repeated field is its elements one after the other. Requests and
// Answers both have theirs as field 1.
type frame [][]byte

// partOf marshals one element, with its field's tag and length.
func partOf(m proto.Message) ([]byte, error) {
	size := proto.Size(m)
	part := make([]byte, 0, size+protowire.SizeTag(1)+protowire.SizeVarint(uint64(size)))
	part = protowire.AppendVarint(protowire.AppendTag(part, 1, protowire.BytesType), uint64(size))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(part, m)
}

// codec is protobuf's, which sends frames too, and wipes what it has sent of them: there
// are plaintexts in it.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Marshal returns the bytes of a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := 0
	for _, part := range f {
		size += len(part)
	}
	// gRPC gives a buffer back to its pool only above its own threshold.
	buffer := sent.Get(max(size, 2<<10))
	at := (*buffer)[:0]
	for _, part := range f {
		at = append(at, part...)
		clear(part)
	}
	*buffer = at
	return mem.BufferSlice{mem.NewBuffer(buffer, &sent)}, nil
}

// wiping is a pool of buffers that are wiped when they come back.
type wiping struct{ pools [27]sync.Pool }

var sent wiping

// Get returns a buffer of length bytes.
func (w *wiping) Get(length int) *[]byte {
	class := bits.Len(uint(length - 1))
	if class >= len(w.pools) {
		b := make([]byte, length)
		return &b
	}
	if b, ok := w.pools[class].Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, 1<<class)
	return &b
}

// Put wipes a buffer and keeps it for another message.
func (w *wiping) Put(b *[]byte) {
	clear(*b)
	if class := bits.Len(uint(cap(*b) - 1)); class < len(w.pools) && cap(*b) == 1<<class {
		w.pools[class].Put(b)
	}
}

// outbox has the parts that wait to be sent.
type outbox struct {
	wake chan struct{} // one value when there are parts, or none to come

	mu     sync.Mutex // guards all below
	parts  frame
	closed bool
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// put adds a part. It reports whether the outbox takes any.
func (o *outbox) put(part []byte) bool {
	o.mu.Lock()
	open := !o.closed
	if open {
		o.parts = append(o.parts, part)
	}
	o.mu.Unlock()
	o.knock()
	return open
}

func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.knock()
}

func (o *outbox) knock() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns a message's worth of parts, and whether the outbox is closed and will have
// no more.
func (o *outbox) take() (f frame, over bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	size := 0
	for i, part := range o.parts {
		if size += len(part); size > bundle && i > 0 {
			f, o.parts = o.parts[:i:i], o.parts[i:]
			return f, false
		}
	}
	f, o.parts = o.parts, nil
	return f, o.closed && len(f) == 0
}

// send sends what is put in until the outbox is closed and empty, or stop is.
func (o *outbox) send(stop <-chan struct{}, send func(frame) error) error {
	for {
		// Sending does not wait for the wire, so that callers who are about to put something
		// in would each have a message of their own. They are let go first; on an idle
		// machine there is none, and nothing is lost.
		runtime.Gosched()
		f, over := o.take()
		switch {
		case over:
			return nil
		case len(f) > 0:
			if err := send(f); err != nil {
				return err
			}
			continue
		}
		select {
		case <-o.wake:
		case <-stop:
			return nil
		}
	}
}
