package kms

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/backup"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/record"
)

// backupsRecord says when the newest backup was made.
const backupsRecord = "backups"

type lastBackup struct {
	Time time.Time `json:"time"`
	ID   hsm.ID    `json:"id"`
}

// BackupHost is what a backup has besides the records.
type BackupHost struct {
	Record  hsm.Record        // of the machine
	Files   map[string][]byte // that its cards need
	Release string

	AuditEvents int64
	AuditHead   string
}

// tallying counts what a backup has, while its entries go by.
type tallying struct {
	records      map[string]struct{}
	keys         map[uint32]keyLines
	destructions uint64
}

// keyLines is what a summary says of a key.
type keyLines struct {
	versions int
	sum      [sha256.Size]byte // of its lines
}

func linesOf(k *Key) keyLines {
	h := sha256.New()
	for _, v := range k.Versions {
		fmt.Fprintf(h, "%d %d %s\n", k.Index, v.Version, v.KCV)
	}
	return keyLines{len(k.Versions), [sha256.Size]byte(h.Sum(nil))}
}

// kcvs is the digest of all keys' check values, in order of their indexes.
func kcvs(keys map[uint32]keyLines) []byte {
	h := sha256.New()
	for _, index := range slices.Sorted(maps.Keys(keys)) {
		sum := keys[index].sum
		h.Write(sum[:])
	}
	return h.Sum(nil)
}

func (c *tallying) count(records []record.Record) error {
	for _, r := range records {
		deleted := r.Content == nil
		if delete(c.records, r.Name); !deleted {
			c.records[r.Name] = struct{}{}
		}
		switch {
		case r.Name == epochsRecord && !deleted:
			var state epochsState
			if err := r.Decode(&state); err != nil {
				return err
			}
			c.destructions = state.Counter
		case strings.HasPrefix(r.Name, keyPrefix) && !deleted:
			k, err := parseKey(r)
			if err != nil {
				return err
			}
			c.keys[k.Index] = linesOf(k)
		}
	}
	return nil
}

func (c *tallying) summary(revision int64, host BackupHost) backup.Summary {
	s := backup.Summary{
		Revision: revision, Records: len(c.records), Keys: len(c.keys), KCVs: kcvs(c.keys), Destructions: c.destructions,
		AuditEvents: host.AuditEvents, AuditHead: host.AuditHead,
	}
	for _, k := range c.keys {
		s.Versions += k.versions
	}
	return s
}

// Backup writes a backup of the records of one moment to out, while the service goes on.
// Each record is opened on its way: one that somebody has altered is refused by name.
func (s *Service) Backup(ctx context.Context, who Actor, out io.Writer) (m backup.Manifest, err error) {
	l, err := s.serving()
	if err != nil {
		return m, err
	}
	if l.epochs == nil || s.cfg.Host == nil || s.cfg.Signer == nil {
		return m, fault.New(fault.Unavailable, "no backup is made here: this service has no destruction keys, or no machine that signs")
	}
	host, err := s.cfg.Host(ctx)
	if err != nil {
		return m, err
	}
	header := backup.Header{
		ID: hsm.NewID(), Created: s.now().Truncate(time.Second), Release: host.Release, Record: host.Record, Epochs: l.epochs.ID(), Files: host.Files,
	}
	w, err := backup.NewWriter(ctx, s.cfg.Machine, header, out)
	if err != nil {
		return m, err
	}
	c := tallying{records: map[string]struct{}{}, keys: map[uint32]keyLines{}}
	revision, err := s.keep.Snapshot(ctx, func(writes []keystore.Write, records []record.Record) error {
		return errors.Join(c.count(records), w.Add(writes))
	})
	if errors.Is(err, keystore.ErrCompacted) {
		err = fault.New(fault.Conflict, "the key store changed too much while it was read; try again")
	}
	if err != nil {
		return m, err
	}
	if m, err = w.Finish(c.summary(revision, host), s.cfg.Signer); err != nil {
		return m, err
	}
	s.cfg.Log.Info("backup made", "by", who, "id", header.ID, "revision", revision, "records", m.Summary.Records, "keys", m.Summary.Keys)
	return m, s.noteBackup(ctx, header)
}

func (s *Service) noteBackup(ctx context.Context, h backup.Header) error {
	for {
		r, err := s.keep.Get(ctx, backupsRecord)
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		r.Name = backupsRecord
		content, err := record.JSON(lastBackup{h.Created, h.ID})
		if err != nil {
			return err
		}
		_, err = s.keep.Apply(ctx, record.Replace(r, content))
		if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, record.ErrRotated) {
			return err
		}
	}
}

// LastBackup is when the newest backup was made, by whatever node; zero when none was, or
// when the service does not know because it is sealed.
func (s *Service) LastBackup() time.Time {
	if l, err := s.serving(); err == nil {
		if at := l.backedUp.Load(); at != nil {
			return *at
		}
	}
	return time.Time{}
}

func (l *loaded) applyBackup(r record.Record) error {
	var last lastBackup
	if err := r.Decode(&last); err != nil {
		return err
	}
	l.backedUp.Store(&last.Time)
	return nil
}

// EpochsCopy returns the file of destruction keys as it is now.
func (s *Service) EpochsCopy() ([]byte, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	if l.epochs == nil {
		return nil, fault.New(fault.NotFound, "this service has no destruction keys")
	}
	return l.epochs.Copy()
}

// VerifyBackup reads a backup and opens everything that is in it.
func (s *Service) VerifyBackup(ctx context.Context, in io.Reader) (backup.Checked, error) {
	if _, err := s.serving(); err != nil {
		return backup.Checked{}, err
	}
	reader := record.NewReader(s.keep)
	c := tallying{records: map[string]struct{}{}, keys: map[uint32]keyLines{}}
	checked, err := backup.Read(ctx, in, s.cfg.Machine, func(writes []keystore.Write) error {
		records, err := reader.Open(ctx, writes)
		if err == nil {
			err = c.count(records)
		}
		return err
	})
	if err == nil {
		err = c.compare(checked.Summary)
	}
	return checked, err
}

// compare reports that what was counted is not what a summary says.
func (c *tallying) compare(s backup.Summary) error {
	if len(c.records) != s.Records || len(c.keys) != s.Keys || !bytes.Equal(kcvs(c.keys), s.KCVs) {
		return fault.New(fault.BackupDamaged, "the backup has %d records and %d keys, its manifest says %d and %d, or their check values differ",
			len(c.records), len(c.keys), s.Records, s.Keys)
	}
	return nil
}

// Restored says what came out of a backup.
type Restored struct {
	Records   int `json:"records"`
	Keys      int `json:"keys"`
	Opened    int `json:"opened"`    // versions that open
	Destroyed int `json:"destroyed"` // versions that do not: their destruction keys are erased
}

// checkBatch is how many keys are looked at in one go.
const checkBatch = 500

// CheckRestored opens every record and unwraps every key of a service that was loaded from
// a backup.
func (s *Service) CheckRestored(ctx context.Context, m backup.Summary) (out Restored, err error) {
	l, err := s.serving()
	if err != nil {
		return out, err
	}
	if out.Records, err = s.CheckRecords(ctx); err != nil {
		return out, err
	}
	indexes := l.keys.indexes(0)
	out.Keys = len(indexes)
	c := tallying{keys: map[uint32]keyLines{}}
	for batch := range slices.Chunk(indexes, checkBatch) {
		var ops []hsm.Op
		for _, k := range l.keys.keysOf(batch) {
			c.keys[k.Index] = linesOf(k)
			for _, v := range k.Versions {
				if v.Wrapped == "" {
					out.Destroyed++
					continue
				}
				ops = append(ops, hsm.Op{Kind: hsm.Rewrap, Key: v.Wrapped})
			}
		}
		if err := s.cfg.Machine.Do(ctx, ops); err != nil {
			return out, err
		}
		for _, op := range ops {
			if op.Err != nil {
				return out, op.Err
			}
		}
		out.Opened += len(ops)
	}
	if out.Keys != m.Keys || !bytes.Equal(kcvs(c.keys), m.KCVs) {
		err = fault.New(fault.BackupDamaged, "the keys that came out of the backup are not those of its manifest")
	}
	return out, err
}

// CheckEpochs reports why a file of destruction keys does not go with a backup.
func CheckEpochs(raw []byte, c backup.Checked, acceptRollback bool) error {
	head, err := epochs.Inspect(raw)
	switch {
	case err != nil:
		return err
	case head.ID != c.Header.Epochs:
		return fault.New(fault.BackupForeign, "the destruction keys are of another key store than the backup: give the newest copy of its own file %s", epochs.File)
	case !slices.Contains(head.Generations, c.Header.Record.Generation):
		return fault.New(fault.BackupForeign, "the destruction keys are sealed under generation %d of the root key, the backup under %d: "+
			"restore a backup that was made after the root was rotated", cmp.Or(head.Generations...), c.Header.Record.Generation)
	case head.Counter < c.Summary.Destructions && !acceptRollback:
		return fault.New(fault.BackupRollback, "the destruction keys are of destruction %d, the backup knows of %d: give the newest copy of the file %s; "+
			"--accept-rollback takes these all the same, and erases what the backup's records say is destroyed", head.Counter, c.Summary.Destructions, epochs.File)
	}
	return nil
}

// Fill writes a backup's entries to an empty store.
func Fill(ctx context.Context, store keystore.Store) func([]keystore.Write) error {
	return func(writes []keystore.Write) error {
		// The last of a name counts: a transaction has each once.
		at := map[string]int{}
		var once []keystore.Write
		for _, w := range writes {
			if i, ok := at[w.Name]; ok {
				once[i] = w
				continue
			}
			at[w.Name] = len(once)
			once = append(once, w)
		}
		for batch := range keystore.Batches(once) {
			if _, err := store.Txn(ctx, nil, batch); err != nil {
				return err
			}
		}
		return nil
	}
}

// Drill restores a backup into a directory that is thrown away, with the machine that is
// open, and opens every record and key of it.
func (s *Service) Drill(ctx context.Context, destruction []byte, in io.Reader) (out Restored, err error) {
	if _, err := s.serving(); err != nil {
		return out, err
	}
	if s.cfg.Scratch == nil {
		return out, fault.New(fault.Unavailable, "this service has no place for a drill")
	}
	dir, err := os.MkdirTemp("", "trikey-drill-")
	if err != nil {
		return out, fault.Wrap(fault.Unavailable, err, "no directory for the drill; make room")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := s.cfg.Scratch(dir)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	checked, err := backup.Read(ctx, in, s.cfg.Machine, Fill(ctx, store))
	if err == nil {
		err = CheckEpochs(destruction, checked, false)
	}
	if err == nil {
		err = durable.WriteBytes(dir, epochs.File, destruction)
	}
	if err != nil {
		return out, err
	}
	restored := New(Config{Machine: s.cfg.Machine, Store: store, Epochs: dir, Log: s.cfg.Log.With("drill", checked.Header.ID), Now: s.cfg.Now, Idle: true})
	defer func() { err = errors.Join(err, restored.Close()) }()
	if err := restored.Load(ctx); err != nil {
		return out, err
	}
	return restored.CheckRestored(ctx, checked.Summary)
}
