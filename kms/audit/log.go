package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// Mode is what the data plane waits for.
type Mode string

// The modes of the data plane.
const (
	Sync  Mode = "sync"  // an answer waits until its event is on the disk
	Async Mode = "async" // it does not; a crash loses the events of the last moment
	Off   Mode = "off"   // operations of the data plane are not recorded
)

// Policy is what becomes of the data plane while the log is blocked.
type Policy string

// The policies.
const (
	Closed Policy = "closed" // it is refused
	Open   Policy = "open"   // it goes on; how many events were lost is recorded afterwards
)

// Signer has the machine's identity key: custody.Desk.
type Signer interface {
	// AuditKey returns the public key with which SignAudit signs.
	AuditKey(ctx context.Context) (ed25519.PublicKey, error)
	// SignAudit signs the text of a checkpoint, which begins with OriginPrefix.
	SignAudit(ctx context.Context, text []byte) ([]byte, error)
}

// Config is what a log needs.
type Config struct {
	Dir       string
	Signer    Signer
	Data      Mode   // Sync when ""
	OnFailure Policy // Closed when ""

	Interval    time.Duration // a checkpoint so often, if there are new events; 10 s when zero
	Every       int64         // and after so many events; 10,000 when zero
	SegmentSize int64         // of a file of events; 64 MiB when zero
	Patience    time.Duration // how long a call waits for the disk; 10 s when zero

	Sinks []Sink // where checkpoints are shipped to; the log closes nothing of them

	Now func() time.Time // time.Now when nil
	Log *slog.Logger     // slog.Default when nil
}

// Log is an audit log that is open for writing. The methods of a nil Log do nothing:
// nothing is recorded. Close ends its goroutines.
type Log struct {
	cfg    Config
	origin string

	queue    chan *appending
	stop     chan struct{} // closed by Close
	written  chan struct{} // closed when the writer has ended
	signOff  chan struct{} // closed by Close, after the writer has ended
	want     chan struct{} // asks for a checkpoint now
	running  sync.WaitGroup
	closing  sync.Once
	reader   *os.File // of the stored hashes, for proofs
	writer   writer   // of the writing goroutine
	keys     *keyring
	shippers []*shipper
	failures failures
	lost     atomic.Int64          // events that were not recorded
	tampered atomic.Pointer[error] // what the signing goroutine found
	since    atomic.Int64          // Unix nanoseconds since when the writer has been at the disk; 0: it is not

	mu      sync.Mutex    // guards all below
	head    tree          // what is on the disk
	blocked error         // why nothing can be written now
	signed  Checkpoint    // the newest
	signErr error         // why the last one could not be signed
	tries   int64         // to sign
	changed chan struct{} // closed, and made anew, after each try to sign
}

// queueLength bounds how many calls wait to be recorded; more wait in line.
const queueLength = 4096

func (c *Config) fill() {
	if c.Data == "" {
		c.Data = Sync
	}
	if c.OnFailure == "" {
		c.OnFailure = Closed
	}
	if c.Interval == 0 {
		c.Interval = 10 * time.Second
	}
	if c.Every == 0 {
		c.Every = 10_000
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = 64 << 20
	}
	if c.Patience == 0 {
		c.Patience = 10 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// appending is events that are recorded together.
type appending struct {
	events []Event
	lines  [][]byte // as they were written; only for keep
	keep   bool
	done   chan error // nil when nobody waits
}

// wait is what a call waits with. Those that were answered are used again.
type wait struct {
	done     chan error
	patience *time.Timer
}

var waits = sync.Pool{New: func() any {
	w := &wait{make(chan error, 1), time.NewTimer(time.Hour)}
	w.patience.Stop()
	return w
}}

// Record brings events to the disk, and returns the number of the first. When it
// returns without error they are there.
func (l *Log) Record(events ...Event) (int64, error) {
	if l == nil || len(events) == 0 {
		return 0, nil
	}
	a := &appending{events: events}
	if err := l.append(a); err != nil {
		return 0, err
	}
	return a.events[0].Number, nil
}

func (l *Log) append(a *appending) error {
	if err := l.Blocked(); err != nil {
		return err
	}
	l.stamp(a)
	w, _ := waits.Get().(*wait)
	a.done = w.done
	w.patience.Reset(l.cfg.Patience)
	answered, err := l.await(a, w.patience.C)
	w.patience.Stop()
	if answered { // else the writer may still answer
		waits.Put(w)
	}
	return err
}

// await has the writer record events, and reports whether it has answered.
func (l *Log) await(a *appending, late <-chan time.Time) (answered bool, err error) {
	select {
	case l.queue <- a:
	case <-l.written:
		return false, errClosed
	case <-late:
		return false, errStalled
	}
	select {
	case err := <-a.done:
		return true, err
	case <-l.written:
		select {
		case err := <-a.done: // the last of them
			return true, err
		default:
			return false, errClosed
		}
	case <-late:
		return false, errStalled
	}
}

func (l *Log) stamp(a *appending) {
	now := l.cfg.Now().UTC()
	for i := range a.events {
		a.events[i].Time = now
	}
}

var (
	errClosed  = fault.New(fault.AuditBlocked, "the audit log is closed: the service is ending")
	errStalled = fault.New(fault.AuditBlocked, "the disk of the audit log does not answer; nothing is done that is not recorded")
)

// Operation records events of the data plane as the configuration says. An error means
// that the operation must not be answered.
func (l *Log) Operation(events ...Event) error {
	if l == nil || l.cfg.Data == Off || len(events) == 0 {
		return nil
	}
	a := &appending{events: events}
	var err error
	if l.cfg.Data == Sync {
		err = l.append(a)
	} else {
		err = l.send(a)
	}
	if err != nil && l.cfg.OnFailure == Open {
		l.lost.Add(int64(len(events)))
		return nil
	}
	return err
}

// send has events recorded without waiting for that. While the queue is full it waits.
func (l *Log) send(a *appending) error {
	if err := l.Blocked(); err != nil {
		return err
	}
	l.stamp(a)
	select {
	case l.queue <- a:
		return nil
	default:
	}
	select {
	case l.queue <- a:
		return nil
	case <-l.written:
		return errClosed
	case <-time.After(l.cfg.Patience):
		return errStalled
	}
}

// Ready reports why the data plane must not be served now.
func (l *Log) Ready() error {
	if l == nil || l.cfg.OnFailure == Open {
		return nil
	}
	return l.Blocked()
}

// Blocked reports why nothing can be recorded now, nil when it can.
func (l *Log) Blocked() error {
	if l == nil {
		return nil
	}
	if since := l.since.Load(); since != 0 && time.Since(time.Unix(0, since)) > l.cfg.Patience {
		return errStalled
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocked
}

// Close records what waits, signs a last checkpoint, ships it, and ends the log.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	var err error
	l.closing.Do(func() {
		l.failures.flush(l, true)
		close(l.stop)
		<-l.written
		close(l.signOff)
		l.running.Wait()
		if l.reader != nil {
			err = l.reader.Close()
		}
		err = errors.Join(err, l.writer.close())
	})
	return err
}

// Stats is what metrics tell of the log.
type Stats struct {
	Blocked bool
	Events  int64 // in the log
	Signed  int64 // of these, covered by the newest checkpoint
	SignErr error // why no newer one was signed
	Age     time.Duration
	Waiting int   // calls that wait to be recorded
	Lost    int64 // events that could not be recorded, since the start
	Syncs   int64 // times that the disk was waited for, since the start
	Shipped map[string]Shipped
}

// Head returns how many events are in the log, and the hash of its tree (RFC 9162, section
// 2.1) in base64.
func (l *Log) Head() (events int64, hash string) {
	if l == nil {
		return 0, ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head.size, l.head.root().String()
}

// Stats returns the log's figures.
func (l *Log) Stats() Stats {
	if l == nil {
		return Stats{}
	}
	blocked := l.Blocked() != nil
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Blocked: blocked, Events: l.head.size, Signed: l.signed.Size, SignErr: l.signErr, Waiting: len(l.queue), Lost: l.lost.Load(),
		Syncs: l.writer.syncs.Load(), Shipped: map[string]Shipped{}, Age: l.cfg.Now().Sub(l.signed.at),
	}
	for _, x := range l.shippers {
		s.Shipped[x.sink.Name()] = x.state()
	}
	return s
}
