package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/keystore"
)

// Signer signs with the identity of the machine.
type Signer interface {
	Sign(ctx context.Context, context string, message []byte) (hsm.Signature, error)
}

// Writer writes one backup.
type Writer struct {
	ctx     context.Context
	machine hsm.Machine
	header  Header
	head    [sha256.Size]byte // of the header as it was written
	out     io.Writer         // the backup, and sum
	sum     hash.Hash
	frames  []byte // not sealed yet
	number  uint64 // of the next chunk
}

// NewWriter begins a backup.
func NewWriter(ctx context.Context, machine hsm.Machine, h Header, out io.Writer) (*Writer, error) {
	w := &Writer{ctx: ctx, machine: machine, header: h, sum: sha256.New()}
	w.out = io.MultiWriter(out, w.sum)
	raw, err := json.Marshal(h, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	w.head = sha256.Sum256(raw)
	if _, err := io.WriteString(w.out, magic); err != nil {
		return nil, err
	}
	return w, w.block(raw)
}

func (w *Writer) block(b []byte) error {
	if _, err := w.out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
		return err
	}
	_, err := w.out.Write(b)
	return err
}

// Add adds entries, which replace those of the same name that were added before.
func (w *Writer) Add(writes []keystore.Write) error {
	for _, e := range writes {
		kind := byte(put)
		if e.Delete {
			kind = del
		}
		if err := w.frame(kind, e.Name, e.Value); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) frame(kind byte, name string, value []byte) error {
	w.frames = append(w.frames, kind)
	w.frames = binary.BigEndian.AppendUint16(w.frames, uint16(len(name)))
	w.frames = append(w.frames, name...)
	w.frames = binary.BigEndian.AppendUint32(w.frames, uint32(len(value)))
	w.frames = append(w.frames, value...)
	for len(w.frames) > chunkSize {
		if err := w.chunk(w.frames[:chunkSize], false); err != nil {
			return err
		}
		w.frames = append(w.frames[:0], w.frames[chunkSize:]...)
	}
	return nil
}

func (w *Writer) chunk(plain []byte, last bool) error {
	ops := []hsm.Op{{Kind: hsm.SealRecord, Record: chunkID(w.header.ID, w.number, last), Generation: w.header.Record.Generation, Input: plain}}
	if err := w.machine.Do(w.ctx, ops); err != nil {
		return err
	}
	if ops[0].Err != nil {
		return ops[0].Err
	}
	w.number++
	return w.block(ops[0].Output)
}

// Finish ends the backup and has its manifest signed.
func (w *Writer) Finish(s Summary, signer Signer) (Manifest, error) {
	s.Header = w.head[:]
	m := Manifest{Header: w.header, Summary: s}
	raw, err := json.Marshal(s, json.Deterministic(true))
	if err == nil {
		err = w.frame(summary, "", raw)
	}
	if err == nil {
		err = w.chunk(w.frames, true)
	}
	if err == nil {
		err = w.block(nil)
	}
	if err != nil {
		return m, err
	}
	m.SHA256 = w.sum.Sum(nil)
	if raw, err = json.Marshal(m, json.Deterministic(true)); err != nil {
		return m, err
	}
	signed, err := signer.Sign(w.ctx, signature, raw)
	if err == nil {
		err = w.block(raw)
	}
	if err == nil {
		_, err = w.out.Write(append(append([]byte{}, signed.PublicKey...), signed.Signature...))
	}
	return m, err
}
