package memscan

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"os"
	"runtime"
	"slices"
	"testing"
)

// Each form is found in this process, and a needle that is nowhere is not.
func TestScan(t *testing.T) {
	value := make([]byte, 32)
	_, _ = rand.Read(value)
	masked := bytes.Clone(value)
	for i := range masked {
		masked[i] ^= 0x5a
	}
	reversed := bytes.Clone(value)
	slices.Reverse(reversed)
	planted := [][]byte{
		[]byte(hex.EncodeToString(value)), reversed,
		[]byte(base64.StdEncoding.EncodeToString(append([]byte("12345"), append(value, "tail"...)...))),
	}
	report, err := Scan(os.Getpid(), []Needle{{"value", value}})
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(planted)
	for _, form := range []string{"raw", "first half", "second half", "reversed", "hex"} {
		if !slices.ContainsFunc(report.Hits, func(h Hit) bool { return h.Form == form }) {
			t.Errorf("the form %q was not found", form)
		}
	}
	if !slices.ContainsFunc(report.Hits, func(h Hit) bool { return len(h.Form) > 6 && h.Form[:6] == "base64" }) {
		t.Error("no base64 was found")
	}
	if _, err := Scan(os.Getpid(), []Needle{{"short", []byte("abc")}}); err == nil {
		t.Error("a needle of three bytes was taken")
	}
}
