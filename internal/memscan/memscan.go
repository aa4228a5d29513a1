// Package memscan looks for secrets in the memory of another process. It is a tool of
// the tests that prove where keys are not.
package memscan

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Needle is a secret to look for.
type Needle struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// Hit is a place where a needle was found.
type Hit struct {
	Name    string `json:"name"`
	Form    string `json:"form"`
	Address uint64 `json:"address"`
	Region  string `json:"region"` // its line of /proc/PID/maps
}

// Report is the outcome of a scan.
type Report struct {
	Scanned    int64    `json:"scanned"`    // bytes that could be read
	Unreadable []string `json:"unreadable"` // regions that could not
	Hits       []Hit    `json:"hits"`
}

// Found reports whether a needle of that name was found.
func (r Report) Found(name string) bool {
	return slices.ContainsFunc(r.Hits, func(h Hit) bool { return h.Name == name })
}

type form struct {
	name, form string
	bytes      []byte
}

// pattern finds many forms in one pass: by their first two bytes, of which most places
// have none.
type pattern struct {
	starts [1 << 16]bool
	forms  map[uint16][]form
	length int // of the longest
}

func newPattern(all []form) *pattern {
	p := &pattern{forms: map[uint16][]form{}}
	for _, f := range all {
		start := uint16(f.bytes[0])<<8 | uint16(f.bytes[1])
		p.starts[start] = true
		p.forms[start] = append(p.forms[start], f)
		p.length = max(p.length, len(f.bytes))
	}
	return p
}

// find calls found with each form that begins in the first n bytes of b.
func (p *pattern) find(b []byte, n int, found func(f form, at int)) {
	if len(b) == 0 {
		return
	}
	start := uint16(b[0])
	for i, next := range b[1:] {
		start = start<<8 | uint16(next)
		if !p.starts[start] || i >= n {
			continue
		}
		for _, f := range p.forms[start] {
			if bytes.HasPrefix(b[i:], f.bytes) {
				found(f, i)
			}
		}
	}
}

// forms returns the shapes in which a secret may lie in memory: as it is, its halves,
// with its bytes reversed whole or in words, in hexadecimal, and in base64 at any
// offset.
func forms(n Needle) []form {
	var all []form
	add := func(name string, b []byte) {
		if len(b) >= 6 {
			all = append(all, form{n.Name, name, b})
		}
	}
	add("raw", n.Value)
	if half := len(n.Value) / 2; half >= 12 {
		add("first half", n.Value[:half])
		add("second half", n.Value[len(n.Value)-half:])
	}
	reversed := bytes.Clone(n.Value)
	slices.Reverse(reversed)
	add("reversed", reversed)
	if len(n.Value)%4 == 0 {
		swapped := bytes.Clone(n.Value)
		for i := 0; i < len(swapped); i += 4 {
			slices.Reverse(swapped[i : i+4])
		}
		add("words swapped", swapped)
	}
	lower := hex.AppendEncode(nil, n.Value)
	add("hex", lower)
	add("HEX", bytes.ToUpper(lower))
	for offset := range 3 {
		// Of a value in the middle of a longer text only the whole groups are sure.
		encoded := base64.StdEncoding.EncodeToString(append(make([]byte, offset), n.Value...))
		first, last := (offset*8+5)/6, (offset+len(n.Value))*8/6
		add(fmt.Sprintf("base64 at offset %d", offset), []byte(encoded[first:last]))
		url := strings.NewReplacer("+", "-", "/", "_").Replace(encoded)
		add(fmt.Sprintf("base64url at offset %d", offset), []byte(url[first:last]))
	}
	return all
}

// Search looks for needles in bytes that were got elsewhere: files, what went over a line.
// where names them in the report.
func Search(where string, b []byte, needles []Needle) Report {
	var all []form
	for _, n := range needles {
		all = append(all, forms(n)...)
	}
	report := Report{Scanned: int64(len(b))}
	newPattern(all).find(b, len(b), func(f form, at int) {
		report.Hits = append(report.Hits, Hit{Name: f.name, Form: f.form, Address: uint64(at), Region: where})
	})
	return report
}

const window = 4 << 20

// Scan reads all memory of a process that can be read.
func Scan(pid int, needles []Needle) (Report, error) {
	var report Report
	var all []form
	for _, n := range needles {
		if len(n.Value) < 6 {
			return report, fmt.Errorf("memscan: %s is too short to be told from chance", n.Name)
		}
		all = append(all, forms(n)...)
	}
	wanted := newPattern(all)
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return report, err
	}
	defer func() { _ = maps.Close() }()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return report, err
	}
	defer func() { _ = mem.Close() }()
	buf := make([]byte, window+wanted.length)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var start, end uint64
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x", &start, &end); err != nil {
			return report, err
		}
		scanRegion(&report, mem, lines.Text(), start, end, buf, wanted)
	}
	if report.Scanned == 0 {
		return report, errors.New("memscan: no memory could be read")
	}
	return report, nil
}

func scanRegion(report *Report, mem io.ReaderAt, region string, start, end uint64, buf []byte, wanted *pattern) {
	for at := start; at < end; at += window {
		part := buf[:min(uint64(len(buf)), end-at)]
		n, err := mem.ReadAt(part, int64(at))
		report.Scanned += int64(min(n, window))
		wanted.find(part[:n], window, func(f form, i int) {
			report.Hits = append(report.Hits, Hit{f.name, f.form, at + uint64(i), region})
		})
		if err != nil && !errors.Is(err, io.EOF) {
			report.Unreadable = append(report.Unreadable, region)
			return
		}
	}
}
