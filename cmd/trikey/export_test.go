package main_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"
)

// begunImport is what trikey key import begin prints.
type begunImport struct {
	ID          string `json:"id"`
	PublicKey   string `json:"public_key"`
	Fingerprint string `json:"fingerprint"`
}

// beginImport begins an import and puts its public key into a file.
func (s *site) beginImport(file string) (b begunImport) {
	s.t.Helper()
	s.ok("key", "import", "begin", "-o", "json").json(s.t, &b)
	if err := os.WriteFile(s.path(file), []byte(b.PublicKey), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *site) kcv(key string, version int) string {
	s.t.Helper()
	var k struct {
		Versions []struct {
			Version int
			KCV     string `json:"kcv"`
		}
	}
	s.ok("key", "show", key, "-o", "json").json(s.t, &k)
	for _, v := range k.Versions {
		if v.Version == version {
			return v.KCV
		}
	}
	s.t.Fatalf("key %s has no version %d", key, version)
	return ""
}

// TestExport: an exportable key goes to another site, wrapped for a key of that one, and
// opens there what was sealed here; it takes two people, or where there is one a word that
// it is meant. Everything else is refused by name, and leaves no file.
func TestExport(t *testing.T) {
	t.Parallel()
	from, to := newOffice(t, nil), newSite(t)
	to.open()
	ops := "keys=1-99;ops=" + allOps
	from.createApp("im", "127.0.0.1/32", ops)
	to.createApp("im", "127.0.0.1/32", ops)
	from.ok("key", "create", "--index", "7", "--name", "chat", "--exportable")
	from.ok("key", "create", "--index", "8", "--name", "stays")
	context := object{"conversation": "c-1"}
	from.ok("key", "rotate", "7")
	second := from.encrypt("7", []byte("of version 2"), context)
	from.ok("key", "rotate", "7")

	// Nobody is enrolled: the socket's user alone, who says so.
	begun := to.beginImport("import.pem")
	blob := from.path("chat.blob")
	export := func(key string, more ...string) result {
		return from.run(append([]string{"key", "export", key, "--to-key", to.path("import.pem"), "--out", blob}, more...)...)
	}
	refused := func(r result, code int, text string) {
		t.Helper()
		if _, err := os.Stat(blob); r.code != code || !strings.Contains(r.err, text) || err == nil {
			t.Errorf("%+v, %v; want %d %q and no file", r, err, code, text)
		}
	}
	kcv := from.kcv("7", 2)
	refused(export("7", "--version", "2"), 4, "nobody else approves")
	refused(export("7", "--version", "2", "--yes-export", from.kcv("7", 3)), 4, "nobody else approves")
	refused(export("8", "--yes-export", from.kcv("8", 1)), 4, "was not made exportable")
	small := from.path("small.pem")
	writeRSA(t, small, 2048)
	refused(from.run("key", "export", "7", "--to-key", small, "--out", blob, "--yes-export", kcv), 2, "2048 bits; it must have 3072")
	var out struct{ Receiver, KCV string }
	r := export("7", "--version", "2", "--yes-export", kcv, "-o", "json")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r.json(t, &out); out.Receiver != begun.Fingerprint || out.KCV != kcv {
		t.Errorf("%+v, want %s %s", out, begun.Fingerprint, kcv)
	}
	if r := export("7", "--version", "2", "--yes-export", kcv); r.code != 2 || !strings.Contains(r.err, "is there already") {
		t.Errorf("over a file: %+v", r)
	}
	if log := from.ok("audit", "tail", "-n", "20", "-o", "json").out; !strings.Contains(log, begun.Fingerprint) || !strings.Contains(log, kcv) {
		t.Errorf("the audit log does not say who received the key:\n%s", log)
	}
	if shown := from.ok("key", "show", "7", "-o", "json").out; strings.Count(shown, `"exported"`) != 1 {
		t.Errorf("the key does not say that one version went out: %s", shown)
	}

	to.ok("key", "import", "finish", "--id", begun.ID, "--in", blob, "--index", "7", "--name", "chat", "--version", "2")
	if got := to.kcv("7", 2); got != kcv {
		t.Errorf("arrived as %s, not %s", got, kcv)
	}
	if a := to.good("/v1/keys/7/decrypt", object{"ciphertext": second, "context": context}); string(a.bytes("plaintext")) != "of version 2" {
		t.Errorf("%s", a.raw)
	}
	if r := to.run("key", "export", "7", "--to-key", small, "--out", to.path("on"), "--yes-export", kcv); r.code != 4 || !strings.Contains(r.err, "was not made exportable") {
		t.Errorf("out of the other site again: %+v", r)
	}
}

// TestExportApproval: where people are enrolled two of them export a key, over the socket
// too, and the one who approves sees for whom, and gets the wrapped key.
func TestExportApproval(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	o.createApp("im", "127.0.0.1/32", "keys=1-99;ops="+allOps)
	o.ok("key", "create", "--index", "9", "--name", "partner", "--exportable")
	ann := o.first("ann", "admin")
	oz := o.first("oz", "officer")
	aud := o.first("aud", "auditor")
	begun := o.beginImport("import.pem")
	blob := o.path("partner.blob")
	args := []string{"key", "export", "9", "--to-key", o.path("import.pem"), "--out", blob, "--yes-export", o.kcv("9", 1)}
	for _, who := range []*person{oz, aud} {
		if r := who.do("", args...); r.code != 4 || !strings.Contains(r.err, "not for the role") {
			t.Errorf("%s asks: %+v", who.name, r)
		}
	}
	if r := o.run(args...); r.code != 4 || !strings.Contains(r.err, "trikey approve grant") {
		t.Errorf("alone at the socket: %+v", r)
	}
	small := o.path("small.pem")
	writeRSA(t, small, 2048)
	if r := ann.do("", "key", "export", "9", "--to-key", small, "--out", blob); r.code != 2 || !strings.Contains(r.err, "2048 bits") {
		t.Errorf("a small receiver waits for approval: %+v", r)
	}
	a := ann.ask(args...)
	if !strings.Contains(a.What, begun.Fingerprint) || !strings.Contains(a.What, o.kcv("9", 1)) {
		t.Errorf("it does not say for whom: %+v", a)
	}
	for who, want := range map[*person]string{ann: "somebody else must approve", aud: "not for the role"} {
		if r := who.grant(a); r.code != 4 || !strings.Contains(r.err, want) {
			t.Errorf("%s grants: %+v", who.name, r)
		}
	}
	if _, err := os.Stat(blob); err == nil {
		t.Fatal("it left without approval")
	}
	oz.must("", "approve", "grant", a.ID, "--digest", a.Digest, "--out", blob)
	if raw, err := os.ReadFile(blob); err != nil || len(raw) != 384+40 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	if r := oz.do("", "approve", "grant", a.ID, "--digest", a.Digest, "--out", o.path("again")); r.code != 1 || !strings.Contains(r.err, "no longer waits") {
		t.Errorf("granted again: %+v", r)
	}
	log := o.ok("audit", "tail", "-n", "50", "-o", "json").out
	for _, want := range []string{begun.Fingerprint, "admin:ann", "officer:oz", a.ID} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit log has no %s", want)
		}
	}
	o.ok("key", "import", "finish", "--id", begun.ID, "--in", blob, "--index", "10", "--name", "arrived")
	if got := o.kcv("10", 1); got != o.kcv("9", 1) {
		t.Errorf("arrived as %s", got)
	}
}

func writeRSA(t *testing.T, file string, bits int) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err == nil {
		err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
