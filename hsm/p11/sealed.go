package p11

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

const (
	sealedMagic = "TKCARDS1"
	// maxSealed bounds a file of sealed shares: more than a card ever has at a time.
	maxSealed = 1 << 20
)

// sealedFile is what one card of FormRSA has sealed, in a file:
//
//	magic "TKCARDS1" | serial length 1 | serial | key 32 | entries | SHA-256 32
//
// where key is the SHA-256 of the card's modulus, the checksum is of all before it,
// and an entry is
//
//	OAEP hash 1 | length 2 | RSA ciphertext | nonce 12 | length 4 | AES-256-GCM ciphertext and tag
//
// The tag also authenticates the head and the OAEP hash: an entry cannot be moved to
// another card.
type sealedFile struct {
	path    string
	serial  string
	key     [sha256.Size]byte
	entries []sealedEntry
}

// sealedEntry is an object under a key of its own, and that under the card's.
type sealedEntry struct {
	oaep   byte
	key    []byte
	nonce  []byte
	object []byte
}

// sealedPath is where the shares of a card are. Makers put what they like in a serial.
func sealedPath(dir, serial string) string {
	return filepath.Join(dir, "card-"+url.PathEscape(serial)+".sealed")
}

func (f *sealedFile) head() []byte {
	b := append([]byte(sealedMagic), byte(len(f.serial)))
	return append(append(b, f.serial...), f.key[:]...)
}

// aad is what the tag of an entry covers besides the object.
func (f *sealedFile) aad(e *sealedEntry) []byte { return append(f.head(), e.oaep) }

func (f *sealedFile) encode() []byte {
	b := f.head()
	for _, e := range f.entries {
		b = binary.BigEndian.AppendUint16(append(b, e.oaep), uint16(len(e.key)))
		b = append(append(b, e.key...), e.nonce...)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(e.object))), e.object...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// write replaces the file. One without entries is removed.
func (f *sealedFile) write() error {
	dir, name := filepath.Split(f.path)
	err := os.MkdirAll(dir, 0o700)
	switch {
	case err != nil:
	case len(f.entries) == 0:
		err = durable.Remove(dir, name)
	default:
		err = durable.WriteBytes(dir, name, f.encode())
	}
	if err != nil {
		return fault.Wrap(fault.CardFull, err, "the sealed shares of the card cannot be written; make room for %s, or correct its mode", f.path)
	}
	return nil
}

// readSealed returns a card's file, without entries when there is none. One that does
// not add up is fault.CardDamaged, one of another card fault.CardMismatch.
func readSealed(dir, serial string) (*sealedFile, error) {
	f := &sealedFile{path: sealedPath(dir, serial), serial: serial}
	raw, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.CardDamaged, err, "the sealed shares of the card cannot be read; correct the mode of %s, or restore it from a backup", f.path)
	}
	if !f.parse(raw) {
		return nil, fault.New(fault.CardDamaged, "the sealed shares of the card in %s are damaged; restore the file from a backup, "+
			"or use another card, and replace this one", f.path)
	}
	if f.serial != serial {
		return nil, fault.New(fault.CardMismatch, "%s is of the card with serial %s, not of this one (%s); put the card's own file there", f.path, f.serial, serial)
	}
	return f, nil
}

// parse is the reverse of encode. It reports whether the file adds up.
func (f *sealedFile) parse(raw []byte) bool {
	if len(raw) > maxSealed || len(raw) < len(sealedMagic)+1+2*sha256.Size {
		return false
	}
	b, sum := raw[:len(raw)-sha256.Size], raw[len(raw)-sha256.Size:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:]) || !bytes.HasPrefix(b, []byte(sealedMagic)) {
		return false
	}
	r := fields{b: b[len(sealedMagic):]}
	f.serial = string(r.take(r.number(1)))
	copy(f.key[:], r.take(sha256.Size))
	for len(r.b) > 0 {
		var e sealedEntry
		e.oaep = byte(r.number(1))
		e.key = r.take(r.number(2))
		e.nonce = r.take(nonceSize)
		e.object = r.take(r.number(4))
		f.entries = append(f.entries, e)
	}
	return !r.short
}

// fields takes fields off a byte slice and remembers whether one was missing.
type fields struct {
	b     []byte
	short bool
}

func (r *fields) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

// number reads n bytes as a number.
func (r *fields) number(n int) (v int) {
	for _, b := range r.take(n) {
		v = v<<8 | int(b)
	}
	return v
}
