package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// receiptHeader is the first line of a receipt (c2sp.org/tlog-proof).
const receiptHeader = "c2sp.org/tlog-proof@v1"

// Receipt is the proof that an event is in the log: the event, the path of hashes from
// it to the root, and the checkpoint that signs the root.
type Receipt struct {
	Line       []byte // the event, as the log has it
	Index      int64
	Proof      tlog.RecordProof
	Checkpoint []byte
}

// receipt proves an event that was recorded.
func (l *Log) receipt(ctx context.Context, number int64, line []byte) (*Receipt, error) {
	c, err := l.waitSigned(ctx, number)
	if err != nil {
		return nil, err
	}
	proof, err := tlog.ProveRecord(c.Size, number, storedHashes{l.reader})
	if err != nil {
		return nil, err
	}
	return &Receipt{Line: line, Index: number, Proof: proof, Checkpoint: c.Note}, nil
}

// Marshal writes the receipt in the form of c2sp.org/tlog-proof, with the event as its
// extra data.
func (r *Receipt) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", receiptHeader, base64.StdEncoding.EncodeToString(r.Line), r.Index)
	for _, h := range r.Proof {
		fmt.Fprintf(&b, "%s\n", h)
	}
	b.WriteByte('\n')
	b.Write(r.Checkpoint)
	return b.Bytes()
}

// ParseReceipt reads what Marshal wrote.
func ParseReceipt(raw []byte) (*Receipt, error) {
	bad := func(what string) (*Receipt, error) { return nil, altered("the receipt %s", what) }
	top, checkpoint, ok := strings.Cut(string(raw), "\n\n")
	lines := strings.Split(top, "\n")
	if !ok || len(lines) < 3 || lines[0] != receiptHeader {
		return bad("is not of the form " + receiptHeader)
	}
	r := &Receipt{Checkpoint: []byte(checkpoint)}
	var err error
	extra, isExtra := strings.CutPrefix(lines[1], "extra ")
	if r.Line, err = base64.StdEncoding.DecodeString(extra); err != nil || !isExtra {
		return bad("has no event")
	}
	index, isIndex := strings.CutPrefix(lines[2], "index ")
	if r.Index, err = strconv.ParseInt(index, 10, 64); err != nil || !isIndex {
		return bad("has no index")
	}
	for _, line := range lines[3:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return bad("has a line that is no hash")
		}
		r.Proof = append(r.Proof, h)
	}
	return r, nil
}

// check proves the receipt against keys, and returns its event and checkpoint.
func (r *Receipt) check(known note.Verifiers) (Event, Checkpoint, error) {
	c, err := openCheckpoint(r.Checkpoint, known)
	if err != nil {
		return Event{}, c, err
	}
	if err := tlog.CheckRecord(r.Proof, c.Size, c.Root, r.Index, tlog.RecordHash(r.Line)); err != nil {
		return Event{}, c, altered("the receipt's event is not in the log that its checkpoint signs")
	}
	e, err := parseLine(r.Line)
	if err != nil || e.Number != r.Index {
		return e, c, altered("the receipt's event is not the one of its number")
	}
	return e, c, nil
}
