package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
)

// newSource returns a source whose service answers after a second, with what answer says.
func newSource(t *testing.T, answer func(n int32) error) (s *tokenSource, asked *atomic.Int32) {
	asked = &atomic.Int32{}
	s = &tokenSource{now: time.Now, fetch: func(ctx context.Context) (v1.TokenResponse, error) {
		n := asked.Add(1)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return v1.TokenResponse{}, ctx.Err()
		}
		return v1.TokenResponse{AccessToken: fmt.Sprint(n), ExpiresIn: 3600}, answer(n)
	}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	t.Cleanup(s.close)
	return s, asked
}

func (s *tokenSource) wants(t *testing.T, want string) {
	t.Helper()
	if got, err := s.authorization(t.Context()); got != want || err != nil {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestTokenSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, asked := newSource(t, func(int32) error { return nil })
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { s.wants(t, "Bearer 1") })
		}
		wg.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("%d requests for one token", n)
		}
		time.Sleep(44 * time.Minute)
		s.wants(t, "Bearer 1")
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("refreshed before three quarters of its time")
		}
		time.Sleep(8 * time.Minute) // of 85 % of an hour
		start := time.Now()
		for range 10 {
			s.wants(t, "Bearer 1")
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("calls waited %v for a refresh", waited)
		}
		time.Sleep(2 * time.Second)
		s.wants(t, "Bearer 2")
		if n := asked.Load(); n != 2 {
			t.Errorf("%d requests for two tokens", n)
		}
		// One that was refused is not shown again; a newer one is not dropped with it.
		s.refused("Bearer 1")
		s.wants(t, "Bearer 2")
		s.refused("Bearer 2")
		s.wants(t, "Bearer 3")
	})
}

func TestTokenSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := false
		s, asked := newSource(t, func(int32) error {
			if away {
				return fault.New(fault.Sealed, "sealed")
			}
			return nil
		})
		s.wants(t, "Bearer 1")
		away = true
		time.Sleep(55 * time.Minute)
		s.wants(t, "Bearer 1")
		time.Sleep(2 * time.Second)
		for range 10 {
			s.wants(t, "Bearer 1") // it still is good; the next try is later
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("%d requests", n)
		}
		time.Sleep(10 * time.Minute)
		if _, err := s.authorization(t.Context()); !errors.Is(err, fault.Sealed) {
			t.Errorf("without a token: %v", err)
		}
		away = false
		s.wants(t, fmt.Sprintf("Bearer %d", asked.Load()+1))
		// A caller that gives up does not wait; the client's end ends the request.
		s.refused(fmt.Sprintf("Bearer %d", asked.Load()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := s.authorization(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		s.close()
		if _, err := s.authorization(t.Context()); err == nil {
			t.Error("a closed client has a token")
		}
	})
}

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	f := &tokenFile{path: path}
	if _, err := f.authorization(t.Context()); !errors.Is(err, fault.BadConfig) {
		t.Errorf("no file: %v", err)
	}
	write := func(text string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	write("one\n", now)
	for _, want := range []string{"one", "two", "three"} {
		if got, err := f.authorization(t.Context()); got != "Bearer "+want || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		switch want {
		case "one":
			if f.refused("Bearer one") {
				t.Error("the same again")
			}
			write("two", now.Add(time.Second))
		case "two":
			write("three", now.Add(time.Second)) // in the same tick
			if !f.refused("Bearer two") {
				t.Error("there is another")
			}
		}
	}
}
