package main_test

import (
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/internal/memscan"
	"github.com/trikey/trikey/internal/netlab"
)

// TestClusterSecrets: with crypto machines apart, nobody but they has a business key. It is
// looked for in the memory of a node that works with it, in all that goes over the lines
// between hosts, and in the files of etcd; so are the messages on the lines and in the
// files. Each search finds something that must be there, or its silence would mean nothing.
func TestClusterSecrets(t *testing.T) {
	t.Parallel()
	if !netlab.Enter(t) {
		return
	}
	c := newCluster(t)
	node := c.nodes[0]
	canary, inMemory := withCanary(nil)
	node.kill()
	node.start(canary)
	within(t, "the node serves", node.serves)
	capture := c.lab.Capture()
	key := node.businessKey("5")
	node.createApp("im", "10.77.0.0/24", "keys=5;ops=encrypt,decrypt")
	message := memscan.Needle{Name: "message", Value: []byte(rand.Text())}
	for i := range 50 {
		sealed := node.encrypt("5", fmt.Appendf(nil, "%s %d", message.Value, i), nil)
		if a := node.post("/v1/keys/5/decrypt", object{"ciphertext": sealed}); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.raw)
		}
	}
	node.get("/livez")
	node.clean(append(inMemory, key))
	search := func(where string, b []byte, control string) {
		t.Helper()
		report := memscan.Search(where, b, []memscan.Needle{key, message, {Name: "control", Value: []byte(control)}})
		if !report.Found("control") {
			t.Errorf("%s: %q was not found in %d bytes: the search proves nothing", where, control, report.Scanned)
		}
		for _, h := range report.Hits {
			if h.Name != "control" {
				t.Errorf("%s (%s) is in %s, at %d", h.Name, h.Form, h.Region, h.Address)
			}
		}
		t.Logf("%s: %d bytes", where, report.Scanned)
	}
	search("the lines", capture.Stop(), "GET /livez HTTP/1.1")
	for i, m := range c.etcd {
		search(fmt.Sprintf("member %d of etcd", i+1), contents(t, m.Dir()), "/keys/0000000005")
	}
}

// contents are those of all files of a directory.
func contents(t *testing.T, dir string) (all []byte) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		all = append(all, b...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
