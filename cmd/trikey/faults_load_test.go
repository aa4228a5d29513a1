package main_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/unixsock"
	"github.com/trikey/trikey/sdk"
)

// load is what callers and administrators do all the while.
type load struct {
	t       *testing.T
	cancel  context.CancelFunc
	workers sync.WaitGroup
	history history

	mu    sync.Mutex
	total tally
	wrong []string
}

// tally counts calls of the data plane.
type tally struct {
	calls, failed int
	slowest       time.Duration // since the last snapshot
	last          error
}

const dataKey = 1 // that messages are sealed with

// load makes an app and a key, and begins.
func (c *cluster) load() *load {
	c.t.Helper()
	first := c.nodes[0]
	first.ok("key", "create", "--index", fmt.Sprint(dataKey), "--name", "chat")
	first.createApp("im", "10.77.0.0/24", "keys=1;ops=encrypt,decrypt,reencrypt")
	for _, n := range c.nodes {
		n.use(first)
	}
	var addresses []string
	for _, n := range c.nodes {
		addresses = append(addresses, n.api)
		within(c.t, "every node knows the app", func() bool { r := n.call(http.MethodGet, "/v1/keys/1", nil); return r.status == http.StatusOK })
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	l := &load{t: c.t, cancel: cancel}
	l.history.begun = time.Now()
	for range addresses { // each prefers another node
		client, err := sdk.New(sdk.Config{Addresses: addresses, AppKey: first.key, AppSecret: first.secret, CAFile: c.files.CA, Timeout: 2 * time.Second})
		if err != nil {
			c.t.Fatal(err)
		}
		l.workers.Go(func() { l.messages(ctx, client) })
		addresses = append(addresses[1:], addresses[0])
	}
	for i, n := range c.nodes {
		l.workers.Go(func() { l.administrate(ctx, i, n) })
	}
	return l
}

func (l *load) stop() { l.cancel(); l.workers.Wait() }

func (l *load) snapshot() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.total
	l.total.slowest, l.total.last = 0, nil
	return s
}

func (l *load) since(before tally) tally {
	now := l.snapshot()
	now.calls -= before.calls
	now.failed -= before.failed
	return now
}

// messages seals, re-encrypts and opens, and compares.
func (l *load) messages(ctx context.Context, client *sdk.Client) {
	defer client.Close()
	var kept []sdk.Sealed // some of long ago
	texts := map[string][]byte{}
	for ctx.Err() == nil {
		text := []byte(rand.Text())
		bound := sdk.Context{"conversation": rand.Text()}
		var sealed sdk.Sealed
		ok := l.timed(ctx, func(ctx context.Context) (err error) {
			sealed, err = client.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(dataKey), Plaintext: text, Context: bound})
			return err
		}) && l.timed(ctx, func(ctx context.Context) (err error) {
			sealed, err = client.ReEncrypt(ctx, sdk.ReEncryptRequest{Ciphertext: sealed.Ciphertext, Context: bound, To: sdk.Target{Context: &sdk.Context{}}})
			return err
		})
		if !ok {
			continue
		}
		texts[sealed.Ciphertext] = text
		if kept = append(kept, sealed); len(kept) > 1000 {
			delete(texts, kept[0].Ciphertext)
			kept = kept[1:]
		}
		old := kept[mathrand.IntN(len(kept))].Ciphertext
		var opened sdk.Opened
		if l.timed(ctx, func(ctx context.Context) (err error) {
			opened, err = client.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: old})
			return err
		}) && !bytes.Equal(opened.Plaintext, texts[old]) {
			l.mu.Lock()
			l.wrong = append(l.wrong, fmt.Sprintf("%s opened as %q", old, opened.Plaintext))
			l.mu.Unlock()
		}
		time.Sleep(time.Millisecond) // leave the computer to others too
	}
}

// timed makes one call of the data plane.
func (l *load) timed(ctx context.Context, f func(context.Context) error) bool {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	start := time.Now()
	err := f(limited)
	if ctx.Err() != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total.calls++
	l.total.slowest = max(l.total.slowest, time.Since(start))
	if err != nil {
		l.total.failed++
		l.total.last = err
	}
	return err == nil
}

// administrate makes keys, rotates them, gives and takes grants, and looks, at one node.
func (l *load) administrate(ctx context.Context, id int, n *site) {
	client := unixsock.Client(n.path("data", "admin.sock"))
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		// All work on the same few keys, and on others after a while, so that none has too
		// long a history.
		epoch := int(time.Since(l.history.begun) / (5 * time.Second))
		index := uint32(100 + 3*epoch + mathrand.IntN(3))
		l.history.do(ctx, client, id, operations[mathrand.IntN(len(operations))], index)
		time.Sleep(time.Duration(mathrand.IntN(40)) * time.Millisecond)
	}
}

// history is what administrators asked for, and were answered.
type history struct {
	begun time.Time

	mu     sync.Mutex // guards below
	events []porcupine.Operation
}

var operations = []string{"create", "rotate", "show", "show", "grant", "revoke", "granted"}

type asked struct {
	op    string
	index uint32 // of the key, or of what is granted
}

// answered is the state that an answer tells of: for a key its newest version, 0 when
// there is none; for a grant 1 when it is given.
type answered struct {
	state   uint32
	unknown bool // no answer: it may have been done, or be done yet
	refused bool // there was one of that index already
}

// do asks one thing, and notes the answer. What a node tells of its own memory, while the
// store is away, is no promise.
func (h *history) do(ctx context.Context, client *http.Client, id int, op string, index uint32) {
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	call := time.Since(h.begun).Nanoseconds()
	out, ok := ask(limited, client, op, index)
	back := time.Since(h.begun).Nanoseconds()
	if out.unknown {
		if op == "show" || op == "granted" {
			return // it changes nothing
		}
		back = never
	}
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, porcupine.Operation{ClientId: id, Input: asked{op, index}, Output: out, Call: call, Return: back})
}

// never is when an operation ended whose end nobody has seen.
const never = 1 << 62

const admin = "http://admin/admin/v1/"

func ask(ctx context.Context, client *http.Client, op string, index uint32) (answered, bool) {
	var key v1.AdminKey
	var app v1.AdminApp
	var err error
	rule := fmt.Sprintf("keys=%d;ops=mac", index)
	switch op {
	case "create":
		err = jsonhttp.Do(ctx, client, http.MethodPost, admin+"keys", http.Header{}, v1.NewKey{Index: index, Name: fmt.Sprint("k", index)}, &key)
	case "rotate":
		err = jsonhttp.Do(ctx, client, http.MethodPost, fmt.Sprint(admin, "keys/", index, "/rotate"), http.Header{}, nil, &key)
	case "show":
		err = jsonhttp.Do(ctx, client, http.MethodGet, fmt.Sprint(admin, "keys/", index), http.Header{}, nil, &key)
	case "grant":
		err = jsonhttp.Do(ctx, client, http.MethodPatch, admin+"apps/im", http.Header{}, v1.ChangeApp{Grant: rule}, &app)
	case "revoke":
		err = jsonhttp.Do(ctx, client, http.MethodPatch, admin+"apps/im", http.Header{}, v1.ChangeApp{Revoke: rule}, &app)
	case "granted":
		err = jsonhttp.Do(ctx, client, http.MethodGet, admin+"apps/im", http.Header{}, nil, &app)
	}
	switch code := fault.CodeOf(err); {
	case err == nil:
		return answered{state: key.Version + has(app, index)}, !key.Stale && !app.Stale
	case code == fault.KeyNotFound:
		return answered{}, true
	case code == fault.Conflict && op == "create":
		return answered{refused: true}, true
	case code == fault.Unavailable, code == fault.Sealed, code == fault.Internal, code == fault.Conflict, ctx.Err() != nil:
		return answered{unknown: true}, true
	}
	return answered{}, false
}

// has is 1 when the app may use the key of that index for codes.
func has(app v1.AdminApp, index uint32) uint32 {
	for _, g := range app.Grants {
		keys, ops, _ := strings.Cut(strings.TrimPrefix(g, "keys="), ";ops=")
		if ops == "mac" && covers(keys, index) {
			return 1
		}
	}
	return 0
}

// covers reads the ranges of a grant as they are printed.
func covers(ranges string, index uint32) bool {
	for r := range strings.SplitSeq(ranges, ",") {
		var from, to uint32
		if n, _ := fmt.Sscanf(r, "%d-%d", &from, &to); n == 1 {
			to = from
		}
		if from <= index && index <= to {
			return true
		}
	}
	return false
}

// check reports wrong results, and whether the history of the administrators is one that a
// single store could have had.
func (l *load) check() {
	l.t.Helper()
	for _, w := range l.wrong {
		l.t.Errorf("wrong: %s", w)
	}
	if len(l.history.events) < 100 {
		l.t.Errorf("only %d management operations were made", len(l.history.events))
	}
	for _, part := range linear.Partition(l.history.events) {
		if result := porcupine.CheckOperationsTimeout(linear.ToModel(), part, time.Minute); result != porcupine.Ok {
			l.t.Errorf("this history is %s, of %d management operations:\n%s", result, len(part), told(part))
		}
	}
}

// told is a history in words.
func told(part []porcupine.Operation) string {
	slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, o := range part {
		in, out, back := o.Input.(asked), o.Output.(answered), time.Duration(o.Return).String()
		if o.Return == never {
			back = "never"
		}
		fmt.Fprintf(&b, "node %d, from %v to %s: %s %d: %+v\n", o.ClientId+1, time.Duration(o.Call), back, in.op, in.index, out)
	}
	return b.String()
}

// linear is what one store would do. The state is that of answered.
var linear = porcupine.NondeterministicModel{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		parts := map[asked][]porcupine.Operation{}
		for _, o := range all {
			in := o.Input.(asked)
			about := asked{"key", in.index}
			if strings.Contains("grant revoke granted", in.op) {
				about.op = "grant"
			}
			parts[about] = append(parts[about], o)
		}
		var out [][]porcupine.Operation
		for _, p := range parts {
			out = append(out, p)
		}
		return out
	},
	Init: func() []any { return []any{uint32(0)} },
	Step: func(state, input, output any) []any {
		now, in, out := state.(uint32), input.(asked), output.(answered)
		then, can := now, true // what the operation makes of the state, where it can be done
		switch in.op {
		case "create":
			then, can = 1, now == 0
		case "rotate":
			then, can = now+1, now != 0
		case "grant":
			then = 1
		case "revoke":
			then = 0
		}
		switch {
		case out.unknown && can:
			return []any{now, then}
		case out.unknown:
			return []any{now}
		case out.refused:
			if now != 0 {
				return []any{now}
			}
			return nil
		case can && out.state == then:
			return []any{then}
		case !can && out.state == 0 && now == 0:
			return []any{now}
		}
		return nil
	},
}

// TestLinearModel: the model finds what must not be.
func TestLinearModel(t *testing.T) {
	t.Parallel()
	op := func(id int, name string, call, back int64, out answered) porcupine.Operation {
		return porcupine.Operation{ClientId: id, Input: asked{name, 7}, Output: out, Call: call, Return: back}
	}
	created := op(0, "create", 0, 1, answered{state: 1})
	for name, test := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"in turn":                    {[]porcupine.Operation{created, op(1, "rotate", 2, 3, answered{state: 2}), op(0, "show", 4, 5, answered{state: 2})}, true},
		"an old version":             {[]porcupine.Operation{created, op(1, "rotate", 2, 3, answered{state: 2}), op(0, "show", 4, 5, answered{state: 1})}, false},
		"two the same":               {[]porcupine.Operation{created, op(1, "rotate", 2, 3, answered{state: 2}), op(0, "rotate", 2, 3, answered{state: 2})}, false},
		"lost":                       {[]porcupine.Operation{created, op(1, "show", 2, 3, answered{})}, false},
		"made twice":                 {[]porcupine.Operation{created, op(1, "create", 2, 3, answered{state: 1})}, false},
		"refused rightly":            {[]porcupine.Operation{created, op(1, "create", 2, 3, answered{refused: true})}, true},
		"no answer, done later":      {[]porcupine.Operation{created, op(1, "rotate", 2, 1<<62, answered{unknown: true}), op(0, "show", 4, 5, answered{state: 1}), op(0, "show", 6, 7, answered{state: 2})}, true},
		"no answer, done and undone": {[]porcupine.Operation{created, op(1, "rotate", 2, 1<<62, answered{unknown: true}), op(0, "show", 4, 5, answered{state: 2}), op(0, "show", 6, 7, answered{state: 1})}, false},
		"revoked and still granted":  {[]porcupine.Operation{op(0, "grant", 0, 1, answered{state: 1}), op(1, "revoke", 2, 3, answered{}), op(0, "granted", 4, 5, answered{state: 1})}, false},
		"revoked":                    {[]porcupine.Operation{op(0, "grant", 0, 1, answered{state: 1}), op(1, "revoke", 2, 3, answered{}), op(0, "granted", 4, 5, answered{})}, true},
	} {
		if got := porcupine.CheckOperations(linear.ToModel(), test.history); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
