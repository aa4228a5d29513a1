package audit

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// FuzzLine: a line that is written without reflection is the one that json.Marshal makes.
func FuzzLine(f *testing.F) {
	f.Add(int64(0), int64(0), "data", "encrypt", "", int64(0), "im", "10.0.0.1", uint32(7), uint32(1), uint32(0), uint32(0), 1, "ok")
	f.Add(int64(1)<<40, int64(1767323045123456789), "admin", "PUT /\"x\"", "end", int64(3), "uid:0\n", "::1", uint32(1<<32-1), uint32(2), uint32(8), uint32(9), -4, "<&\u2028\\>")
	f.Add(int64(5), int64(1767323045100000000), "", "", "begin", int64(-1), "\x01\x7f\xff", "密", uint32(0), uint32(0), uint32(0), uint32(0), 0, "")
	f.Fuzz(func(t *testing.T, n, at int64, kind, op, phase string, of int64, actor, address string, key, version, toKey, toVersion uint32, items int, outcome string) {
		e := Event{
			Number: n, Time: time.Unix(0, at).UTC(), Kind: Kind(kind), Op: op, Phase: phase, Of: of, Actor: actor, Address: address,
			Key: key, Version: version, ToKey: toKey, ToVersion: toVersion, Items: items, Outcome: outcome,
		}
		want, wantErr := json.Marshal(&e, json.Deterministic(true))
		got, err := e.appendLine([]byte("before"))
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%v, but json.Marshal: %v", err, wantErr)
		}
		if err == nil && string(got) != "before"+string(want) {
			t.Fatalf("%s, want %s", got[len("before"):], want)
		}
	})
}

// TestLineAllocates nothing for an operation of the data plane.
func TestLineAllocates(t *testing.T) {
	e := Event{Number: 4711, Time: time.Now().UTC(), Kind: Data, Op: "encrypt", Actor: "im", Address: "10.0.0.1", Key: 7, Version: 1, Items: 1, Outcome: OK}
	var line []byte
	if n := testing.AllocsPerRun(100, func() { line, _ = e.appendLine(line[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
