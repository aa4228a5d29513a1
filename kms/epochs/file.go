package epochs

import (
	"context"
	"encoding/binary"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// magic begins the file:
//
//	magic "TKEPOCH1" | id 16 | counter 8 | sealings 1 | sealings × (generation 4 | length 4 | sealed)
//
// Each sealing is the whole tree, as a record "epochs/<id>" of the revision counter,
// under the root of its generation. There are two while the root is rotated.
const magic = "TKEPOCH1"

const headSize = len(magic) + 16 + 8 + 1

// Head is what a file of destruction keys tells without a machine. The machine
// authenticates it when it opens the rest.
type Head struct {
	ID          hsm.ID   `json:"id"`
	Counter     uint64   `json:"counter"`
	Generations []uint32 `json:"generations"`
}

// Inspect reads a file's head.
func Inspect(raw []byte) (Head, error) {
	h, _, err := parse(raw)
	return h, err
}

func parse(raw []byte) (h Head, sealings [][]byte, err error) {
	damaged := fault.New(fault.RecordDamaged, "the file of destruction keys is damaged, or is none; take the newest copy of %s", File)
	if len(raw) < headSize || string(raw[:len(magic)]) != magic {
		return h, nil, damaged
	}
	copy(h.ID[:], raw[len(magic):])
	h.Counter = binary.BigEndian.Uint64(raw[len(magic)+16:])
	rest := raw[headSize:]
	for range raw[headSize-1] {
		if len(rest) < 8 {
			return h, nil, damaged
		}
		n := int(binary.BigEndian.Uint32(rest[4:]))
		if n > len(rest)-8 {
			return h, nil, damaged
		}
		h.Generations = append(h.Generations, binary.BigEndian.Uint32(rest))
		sealings = append(sealings, rest[8:8+n])
		rest = rest[8+n:]
	}
	if len(rest) > 0 || len(sealings) == 0 {
		return h, nil, damaged
	}
	return h, sealings, nil
}

func (h Head) record() hsm.RecordID {
	return hsm.RecordID{Name: File + "/" + h.ID.String(), Revision: h.Counter}
}

// seal returns the file of a tree.
func seal(ctx context.Context, machine hsm.Machine, h Head, t *tree) ([]byte, error) {
	plain, err := t.marshal()
	if err != nil {
		return nil, err
	}
	defer plain.Wipe()
	ops := make([]hsm.Op, len(h.Generations))
	err = plain.Use(func(b []byte) error {
		for i, g := range h.Generations {
			ops[i] = hsm.Op{Kind: hsm.SealRecord, Record: h.record(), Generation: g, Input: b}
		}
		return machine.Do(ctx, ops)
	})
	if err != nil {
		return nil, err
	}
	out := append([]byte(magic), h.ID[:]...)
	out = append(binary.BigEndian.AppendUint64(out, h.Counter), byte(len(ops)))
	for i, op := range ops {
		if op.Err != nil {
			return nil, op.Err
		}
		out = binary.BigEndian.AppendUint32(out, h.Generations[i])
		out = binary.BigEndian.AppendUint32(out, uint32(len(op.Output)))
		out = append(out, op.Output...)
	}
	return out, nil
}

// open has the machine open a sealing, into protected memory.
func open(ctx context.Context, machine hsm.Machine, h Head, sealed []byte) (t *tree, err error) {
	page, err := secret.New(len(sealed))
	if err != nil {
		return nil, err
	}
	defer page.Wipe()
	err = page.Use(func(b []byte) error {
		ops := []hsm.Op{{Kind: hsm.OpenRecord, Record: h.record(), Input: sealed, Output: b[:0:len(b)]}}
		if err := machine.Do(ctx, ops); err != nil {
			return err
		}
		if ops[0].Err != nil {
			return fault.Wrap(fault.CodeOf(ops[0].Err), ops[0].Err, "the file of destruction keys: edited, or sealed by another machine")
		}
		out := ops[0].Output
		if len(out) > 0 && &out[0] != &b[0] {
			defer clear(out) // a machine elsewhere has answered in memory of its own
		}
		t, err = parseTree(out)
		return err
	})
	return t, err
}
