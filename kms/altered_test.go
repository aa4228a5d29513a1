package kms_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/activity"
	"github.com/trikey/trikey/kms/approval"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/census"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/people"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/record"
)

// What begins or names nothing in the key store, of the constants that look as if it did.
var notStored = map[string]string{
	"whsec_":           "a webhook's secret",
	"events-":          "a file of the audit log",
	"trikey/v1/audit/": "a checkpoint's origin",
	"tl1.":             "a locked key, within a record",
	"tks_":             "a session's token",
}

// What is in the key store and is not in the index of revisions, and why.
var outside = map[string]string{
	"key-use/": "counts of operations change each minute; one that is put back delays a rotation by count",
	"nonce/":   "what signed requests have used; without a seal, so that the machine is not asked for each",
}

// What is not opened at load, because there may be millions, but where it is used, and by
// doctor. That one is missing, put there or put back is seen at load all the same: the
// index of revisions has their numbers.
var openedAtUse = map[string]string{
	"key-names/":        "that names are unique; the keys themselves say their names",
	"key-certificates/": "shown when somebody asks for one, and signed besides",
}

// storedKinds reads the source of kms and below, and returns every prefix and name of records
// that its constants have: a new one is here as soon as it is written.
func storedKinds(t *testing.T) []string {
	t.Helper()
	kinds := map[string]bool{}
	if err := filepath.WalkDir(".", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		values := map[string]string{}
		for range 3 { // a constant may be made of one that is found later
			files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
			for _, name := range files {
				if strings.HasSuffix(name, "_test.go") {
					continue
				}
				file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
				if err != nil {
					return err
				}
				ast.Inspect(file, func(n ast.Node) bool {
					spec, ok := n.(*ast.ValueSpec)
					if !ok {
						return true
					}
					for i, value := range spec.Values {
						name := spec.Names[i].Name
						if text, ok := stringOf(value, values); ok {
							values[name] = text
							lower := strings.ToLower(name)
							if strings.HasSuffix(lower, "prefix") || strings.HasSuffix(lower, "record") {
								kinds[text] = true
							}
						}
					}
					return true
				})
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for kind := range notStored {
		if !kinds[kind] {
			t.Errorf("%q is not in the source any more", kind)
		}
		delete(kinds, kind)
	}
	for kind := range outside {
		if !kinds[kind] {
			t.Errorf("%q is not in the source any more", kind)
		}
		delete(kinds, kind)
	}
	all := slices.Sorted(maps.Keys(kinds))
	return slices.DeleteFunc(all, func(kind string) bool { // what others are below
		return strings.HasSuffix(kind, "/") && slices.ContainsFunc(all, func(other string) bool { return other != kind && strings.HasPrefix(other, kind) })
	})
}

// stringOf evaluates a constant made of literals and of constants that are known.
func stringOf(e ast.Expr, known map[string]string) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		return constant.StringVal(constant.MakeFromLiteral(e.Value, e.Kind, 0)), true
	case *ast.Ident:
		text, ok := known[e.Name]
		return text, ok
	case *ast.BinaryExpr:
		x, okX := stringOf(e.X, known)
		y, okY := stringOf(e.Y, known)
		return x + y, okX && okY && e.Op == token.ADD
	}
	return "", false
}

// full is a key store with two records of every kind, and each in an older state too.
type full struct {
	machine hsm.Engine
	file    string // of the store, closed
	epochs  string // the directory of the destruction keys
	now     map[string][]byte
	older   map[string][]byte
}

func (f *full) config(store keystore.Store, dir string) kms.Config {
	return kms.Config{Machine: f.machine, Store: store, Epochs: dir, Idle: true, Log: slog.New(slog.DiscardHandler)}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// fill makes two records of every kind: by what makes them, or, where only time or another
// process does, as it would.
func fill(t *testing.T, service *kms.Service, keep *record.Keeper) {
	t.Helper()
	ctx, check := t.Context(), func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	apps, desk := must[*auth.Apps](t)(service.Apps()), must[*approval.Desk](t)(service.Approvals())
	registry := must[*people.Registry](t)(service.People())
	office := netip.MustParseAddr("192.0.2.1")
	for i, name := range []string{"im", "other"} {
		must[auth.Credentials](t)(apps.Create(ctx, name, policy.Whitelist{netip.MustParsePrefix("127.0.0.1/32")}, nil, 0))
		must[*kms.Key](t)(service.CreateKey(ctx, "test", kms.NewKey{Index: uint32(7 + i), Name: name}))
		check(apps.AddPin(ctx, name, auth.SPKI{byte(i)}),
			service.SaveCensus(ctx, "test", name, census.Census{Made: time.Now().Add(-time.Hour), Sources: []string{name}}))
		must[approval.Request](t)(desk.Ask(ctx, approval.Request{What: name, Method: "POST", Path: "/", By: "test"}, time.Hour))
		half := people.NewHalf()
		invited := must[people.Invitation](t)(registry.Invite(ctx, name, people.Admin, people.HalfDigest(half)))
		password := must[*secret.Bytes](t)(secret.Move([]byte("several words in a row")))
		t.Cleanup(password.Wipe)
		must[string](t)(registry.Enrol(ctx, name, [2]string{invited.Half, half}, password, office))
		put := func(name string, content any) {
			raw := must[[]byte](t)(record.JSON(content))
			must[int64](t)(keep.Apply(ctx, record.Create(name, raw)))
		}
		put("suspended/"+name, kms.Suspension{App: name, Time: time.Now()})
		put(activity.Prefix+name, activity.Profile{Since: time.Now()})
		put("key-certificates/"+fmt.Sprint(7+i), "what it says")
		put("tokens/revoked/"+name, map[string]any{"expires": time.Now().Add(time.Hour).Unix()})
		put("tokens/before/app/"+name, map[string]any{"expires": time.Now().Add(time.Hour).Unix(), "before": time.Now().Unix()})
		if i == 0 {
			put("backups", map[string]any{"time": time.Now()})
			check(service.Reserve(ctx, "test", kms.Reservation{Range: policy.Range{From: 100, To: 200}, App: name}))
		}
	}
}

func newFull(t *testing.T) *full {
	t.Helper()
	s := newSite(t)
	f := &full{machine: s.machine, file: filepath.Join(t.TempDir(), "store.db"), epochs: t.TempDir(), older: map[string][]byte{}, now: map[string][]byte{}}
	store := must[*bolt.Store](t)(bolt.Open(bolt.Config{Path: f.file}))
	service := kms.New(f.config(store, f.epochs))
	if err := service.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	keep := &record.Keeper{Machine: s.machine, Store: store}
	if err := keep.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, service, keep)
	if err := service.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(into map[string][]byte) {
		entries, _, err := store.List(t.Context(), "g1/", "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			into[strings.TrimPrefix(e.Name, "g1/")] = e.Value
		}
	}
	read(f.older)
	for name := range f.older { // each is changed once more: to the same
		if strings.HasPrefix(name, "revisions/") {
			continue
		}
		r := must[record.Record](t)(keep.Get(t.Context(), name))
		must[int64](t)(keep.Apply(t.Context(), record.Replace(r, r.Content)))
	}
	read(f.now)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestEveryKindOfRecord does to every kind of record what root on the host can do: each is
// refused by its name when the service loads, and found by what trikey doctor has the
// service look at. The kinds are read from the source.
func TestEveryKindOfRecord(t *testing.T) {
	f := newFull(t)
	tried := 0
	for _, kind := range storedKinds(t) {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(f.now)) {
			if name == kind || strings.HasSuffix(kind, "/") && strings.HasPrefix(name, kind) {
				names = append(names, name)
			}
		}
		if len(names) == 0 || len(names) == 1 && strings.HasSuffix(kind, "/") {
			t.Errorf("%s: a kind of record of which this test has not two: add it to fill, and see that what is done to it is noticed", kind)
			continue
		}
		one := names[0]
		another := names[len(names)-1]
		switch {
		case kind == "revisions/summary": // what is below it does not fit then
			another = "revisions/00"
		case another == one: // there is one of this kind: exchange it with something else
			another = "apps/app/im"
		}
		put := func(name string, value []byte) keystore.Write {
			return keystore.Write{Name: "g1/" + name, Value: value}
		}
		changed := func(value []byte, at int) []byte {
			out := slices.Clone(value)
			out[at] ^= 1
			return out
		}
		number := func(by uint64) []byte {
			out := slices.Clone(f.now[one])
			binary.BigEndian.PutUint64(out, binary.BigEndian.Uint64(out)+by)
			return out
		}
		for what, writes := range map[string][]keystore.Write{
			"edited":      {put(one, changed(f.now[one], len(f.now[one])/2))},
			"cut off":     {put(one, f.now[one][:5])},
			"renumbered":  {put(one, number(1))},
			"exchanged":   {put(one, f.now[another]), put(another, f.now[one])},
			"copied":      {put(one+"0", f.now[one])},
			"copied over": {put(one, f.now[another])},
			"put back":    {put(one, f.older[one])},
			"deleted":     {{Name: "g1/" + one, Delete: true}},
		} {
			tried++
			t.Run(strings.ReplaceAll(kind, "/", " ")+" "+what, func(t *testing.T) {
				inIndex := !slices.Contains([]string{"edited", "exchanged", "copied over"}, what)
				f.refused(t, writes, openedAtUse[kind] == "" || inIndex, one, another)
			})
		}
	}
	t.Logf("%d alterations, each refused by name", tried)
}

// refused alters a copy of the store, and looks at who notices.
func (f *full) refused(t *testing.T, writes []keystore.Write, atLoad bool, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for from, to := range map[string]string{f.file: "store.db", filepath.Join(f.epochs, epochs.File): epochs.File} {
		raw := must[[]byte](t)(os.ReadFile(from))
		if err := os.WriteFile(filepath.Join(dir, to), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store := must[*bolt.Store](t)(bolt.Open(bolt.Config{Path: filepath.Join(dir, "store.db")}))
	defer func() { _ = store.Close() }()
	before := kms.New(f.config(store, dir))
	defer func() { _ = before.Close() }()
	if err := before.Load(t.Context()); err != nil {
		t.Fatalf("before: %v", err)
	}
	if _, err := store.Txn(t.Context(), nil, writes); err != nil {
		t.Fatal(err)
	}
	named := func(err error) bool {
		return err != nil && slices.ContainsFunc(names, func(name string) bool { return strings.Contains(err.Error(), name) })
	}
	if _, err := before.CheckRecords(t.Context()); !named(err) {
		t.Errorf("the running service, asked by doctor: %v; want the name of %s", err, names)
	}
	_ = before.Close()
	after := kms.New(f.config(store, dir))
	defer func() { _ = after.Close() }()
	if !atLoad {
		return
	}
	if err := after.Load(t.Context()); !errors.Is(err, fault.RecordDamaged) || !named(err) {
		t.Errorf("at load: %v; want the name of %s", err, names)
	}
}
