package main_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
)

type (
	salt  [16]byte
	nonce [12]byte
)

// sealings is how many ciphertexts each of four processes makes of one text.
const sealings = 2_500_000

// TestNonces: ten million ciphertexts of one text under one key, by three machines with the
// same root, one of which is killed and started anew half way, while the third runs on a
// copy of its disk. No nonce comes twice, and no two processes share a salt.
func TestNonces(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t)})
	a := newSite(t)
	a.configure(func(cfg *config.Config) {
		cfg.Store = config.Store{Kind: config.StoreEtcd, Endpoints: c.Endpoints()}
		cfg.Audit.Data = "off" // what is tested is not there
	})
	a.open()
	a.ok("key", "create", "--index", "1", "--name", "chat")
	a.createApp("im", "127.0.0.1/32", "keys=1;ops=encrypt")
	b, clone := a.join(), a.join()
	for _, s := range []*site{b, clone} {
		s.configure(func(cfg *config.Config) { cfg.Audit.Data = "off" })
	}
	a.kill()
	sockets, _ := filepath.Glob(a.path("data", "*.sock")) // they are no files to copy
	for _, remove := range append(sockets, clone.path("data")) {
		if err := os.RemoveAll(remove); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(clone.path("data"), os.DirFS(a.path("data"))); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	all := make([]nonce, 0, 4*sealings)
	owner := map[salt]string{}
	run := func(names string, sites ...*site) {
		var wg sync.WaitGroup
		for i, s := range sites {
			name := strings.Split(names, ",")[i]
			s.start()
			if r := s.unseal(a.cards()...); r.code != 0 {
				t.Fatalf("%s: %+v", name, r)
			}
			s.use(a)
			within(t, "the app is known", func() bool { return s.call(http.MethodGet, "/v1/keys/1", nil).status == http.StatusOK })
			wg.Go(func() {
				nonces, salts, err := s.seals(sealings)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				all = append(all, nonces...)
				for salt := range salts {
					if other, known := owner[salt]; known {
						t.Errorf("%s and %s had the same salt", name, other)
					}
					owner[salt] = name
				}
			})
		}
		wg.Wait()
	}
	run("the first,the second", a, b)
	a.kill()
	b.kill()
	run("the first after its restart,the clone of the first", a, clone)
	if len(all) != 4*sealings {
		t.Fatalf("%d ciphertexts", len(all))
	}
	slices.SortFunc(all, func(x, y nonce) int { return bytes.Compare(x[:], y[:]) })
	for i := 1; i < len(all); i++ {
		if all[i] == all[i-1] {
			t.Fatalf("the nonce %x came twice", all[i])
		}
	}
	t.Logf("%d ciphertexts, no nonce twice, %d salts of %d processes", len(all), len(owner), 4)
}

// seals seals the same text n times, and returns the nonces and salts.
func (s *site) seals(n int) ([]nonce, map[salt]bool, error) {
	const batch = 1000
	item := `{"key":1,"plaintext":"b2s="}`
	body := []byte(`{"items":[` + strings.Repeat(item+",", batch-1) + item + `]}`)
	if !json.Valid(body) {
		return nil, nil, fmt.Errorf("the test is wrong")
	}
	nonces, salts := make([]nonce, 0, n), map[salt]bool{}
	for len(nonces) < n {
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.api+"/v1/batch/encrypt", bytes.NewReader(body))
		if err != nil {
			return nil, nil, err
		}
		req.SetBasicAuth(s.key, s.secret)
		req.Header.Set("Content-Type", "application/json")
		res, err := s.client.Do(req)
		if err != nil {
			return nil, nil, err
		}
		raw, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			return nil, nil, fmt.Errorf("%s: %w: %.200s", res.Status, err, raw)
		}
		before := len(nonces)
		for range batch {
			_, rest, found := bytes.Cut(raw, []byte(`"tk1.`))
			if !found {
				break
			}
			raw = rest
			var head [51]byte // 68 characters: the header and some of the ciphertext
			if _, err := base64.RawURLEncoding.Decode(head[:], rest[:68]); err != nil {
				return nil, nil, err
			}
			h, _, err := envelope.Parse(append(head[:], make([]byte, envelope.Overhead)...))
			if err != nil {
				return nil, nil, err
			}
			salts[salt(h.Salt)] = true
			nonces = append(nonces, nonce(h.Nonce))
		}
		if len(nonces) != before+batch {
			return nil, nil, fmt.Errorf("%d of %d items were sealed", len(nonces)-before, batch)
		}
	}
	return nonces, salts, nil
}
