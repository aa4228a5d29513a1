package backup

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Checked is a backup whose every byte is as it was signed.
type Checked struct {
	Manifest
	Fingerprint string // of the key that signed it: compare it with one that was noted elsewhere
}

// Read checks a whole backup. With a machine it opens it too, and calls f with its
// entries, in order; what f was given counts only when Read returns without error.
func Read(ctx context.Context, in io.Reader, machine hsm.Machine, f func([]keystore.Write) error) (Checked, error) {
	r := &reader{ctx: ctx, machine: machine, f: f, sum: sha256.New()}
	r.in = io.TeeReader(in, r.sum)
	if err := r.begin(); err != nil {
		return Checked{}, err
	}
	if err := r.chunks(); err != nil {
		return Checked{}, err
	}
	return r.end(in)
}

func damaged(what string) error {
	return fault.New(fault.BackupDamaged, "the backup is not as it was made: %s; take another copy of it, or another backup", what)
}

// reader reads one backup.
type reader struct {
	ctx     context.Context
	machine hsm.Machine // nil: nothing is opened
	f       func([]keystore.Write) error
	in      io.Reader // and sum
	sum     hash.Hash
	header  Header
	frames  []byte // that do not make a whole frame yet
	summary []byte // once it has come
}

// block reads a length and as many bytes.
func (r *reader) block(limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return nil, r.short(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > uint32(limit) {
		return nil, damaged("a length in it is wrong")
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.in, b); err != nil {
		return nil, r.short(err)
	}
	return b, nil
}

func (r *reader) short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it is cut short")
	}
	return err
}

func (r *reader) begin() error {
	var begin [len(magic)]byte
	if _, err := io.ReadFull(r.in, begin[:]); err != nil {
		return r.short(err)
	}
	if string(begin[:]) != magic {
		return fault.New(fault.BackupDamaged, "this is no backup of Trikey")
	}
	raw, err := r.block(maxHeader)
	if err != nil {
		return err
	}
	if json.Unmarshal(raw, &r.header, json.RejectUnknownMembers(true)) != nil {
		return damaged("its header cannot be read")
	}
	if r.machine == nil {
		return nil
	}
	status, err := r.machine.Status(r.ctx)
	if err != nil {
		return err
	}
	if m := r.header.Record; m.RootID != status.RootID || m.Generation != status.Generation {
		return fault.New(fault.BackupForeign, "the backup is of machine %s, root %s, generation %d; this machine has root %s, generation %d",
			m.MachineID, m.RootID, m.Generation, status.RootID, status.Generation)
	}
	return nil
}

func (r *reader) chunks() error {
	// One is read ahead: what seals the last differs.
	next, err := r.block(maxChunk)
	for n := uint64(0); ; n++ {
		if err != nil {
			return err
		}
		chunk := next
		if len(chunk) == 0 {
			return damaged("it has no chunks")
		}
		if next, err = r.block(maxChunk); err != nil {
			return err
		}
		last := len(next) == 0
		if r.machine != nil {
			if err := r.open(chunk, n, last); err != nil {
				return err
			}
		}
		if last {
			break
		}
	}
	if r.machine != nil && (r.summary == nil || len(r.frames) > 0) {
		return damaged("its entries end early")
	}
	return nil
}

func (r *reader) open(chunk []byte, n uint64, last bool) error {
	ops := []hsm.Op{{Kind: hsm.OpenRecord, Record: chunkID(r.header.ID, n, last), Input: chunk}}
	if err := r.machine.Do(r.ctx, ops); err != nil {
		return err
	}
	if errors.Is(ops[0].Err, fault.RecordDamaged) {
		return damaged("a chunk was edited, moved or left out, or is another machine's")
	}
	if ops[0].Err != nil {
		return ops[0].Err
	}
	r.frames = append(r.frames, ops[0].Output...)
	var writes []keystore.Write
	for {
		kind, name, value, rest, ok := cutFrame(r.frames)
		if !ok {
			break
		}
		switch {
		case r.summary != nil || kind < put || kind > summary || len(name) > keystore.MaxName || len(value) > keystore.MaxValue:
			return damaged("a frame of it is not valid")
		case kind == summary:
			r.summary = bytes.Clone(value)
		default:
			writes = append(writes, keystore.Write{Name: string(name), Value: bytes.Clone(value), Delete: kind == del})
		}
		r.frames = rest
	}
	r.frames = bytes.Clone(r.frames)
	if len(writes) == 0 {
		return nil
	}
	return r.f(writes)
}

func cutFrame(b []byte) (kind byte, name, value, rest []byte, ok bool) {
	if len(b) < 3 {
		return
	}
	end := 3 + int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < end+4 {
		return
	}
	size := int(binary.BigEndian.Uint32(b[end:]))
	if len(b)-end-4 < size {
		return
	}
	return b[0], b[3:end], b[end+4:][:size], b[end+4+size:], true
}

func (r *reader) end(in io.Reader) (c Checked, err error) {
	sum := r.sum.Sum(nil)
	raw, err := r.block(maxHeader)
	if err != nil {
		return c, err
	}
	var tail [ed25519.PublicKeySize + ed25519.SignatureSize]byte
	if _, err := io.ReadFull(in, tail[:]); err != nil {
		return c, r.short(err)
	}
	if n, err := io.ReadFull(in, make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return c, damaged("something follows its end")
	}
	public, signed := tail[:ed25519.PublicKeySize], tail[ed25519.PublicKeySize:]
	c.Fingerprint = hsm.Fingerprint(public)
	if err := (hsm.Signature{PublicKey: public, Fingerprint: c.Fingerprint, Signature: signed}).Check(signature, raw, ""); err != nil {
		return c, damaged("the signature of its manifest does not match")
	}
	if json.Unmarshal(raw, &c.Manifest, json.RejectUnknownMembers(true)) != nil {
		return c, damaged("its manifest cannot be read")
	}
	header, err := json.Marshal(r.header, json.Deterministic(true))
	if err != nil {
		return c, err
	}
	again, err := json.Marshal(c.Header, json.Deterministic(true))
	if err != nil {
		return c, err
	}
	if !bytes.Equal(sum, c.SHA256) || !bytes.Equal(header, again) {
		return c, damaged("its content is not what its manifest says")
	}
	if r.machine == nil {
		return c, nil
	}
	// The summary that the root key authenticates: whoever signs with another identity
	// cannot change that.
	said, err := json.Marshal(c.Summary, json.Deterministic(true))
	head := sha256.Sum256(header)
	if err == nil && (!bytes.Equal(said, r.summary) || !bytes.Equal(head[:], c.Summary.Header)) {
		err = damaged("its manifest does not agree with its content")
	}
	return c, err
}
