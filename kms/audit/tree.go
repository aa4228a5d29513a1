package audit

import (
	"io"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// tree is the part of a Merkle tree that is needed to append to it: its size, and the
// root of each complete subtree at its right edge (the "compact range").
type tree struct {
	size int64
	edge [63]tlog.Hash // of level i where bit i of size is set
}

// ReadHashes gives tlog what it reads when a record is appended: the edge, and nothing
// else.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		level, _ := tlog.SplitStoredHashIndex(x)
		out[i] = t.edge[level]
	}
	return out, nil
}

// add appends a record by its hash, and returns the hashes to store.
func (t *tree) add(record tlog.Hash) ([]tlog.Hash, error) {
	stored, err := tlog.StoredHashesForRecordHash(t.size, record, t)
	if err == nil {
		t.edge[len(stored)-1] = stored[len(stored)-1]
		t.size++
	}
	return stored, err
}

// root is the tree's hash.
func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		hash, _ := tlog.TreeHash(0, t) // reads nothing
		return hash
	}
	low := bits.TrailingZeros64(uint64(t.size))
	hash := t.edge[low]
	for level := low + 1; level < bits.Len64(uint64(t.size)); level++ {
		if t.size>>level&1 == 1 {
			hash = tlog.NodeHash(t.edge[level], hash)
		}
	}
	return hash
}

// edgeIndexes are the places, among the stored hashes, of the edge of a tree of that
// size, from the lowest level.
func edgeIndexes(size int64) (levels []int, indexes []int64) {
	for level := range bits.Len64(uint64(size)) {
		if size>>level&1 == 1 {
			levels = append(levels, level)
			indexes = append(indexes, tlog.StoredHashIndex(level, size>>level-1))
		}
	}
	return levels, indexes
}

// readTree reads the tree of a size from stored hashes.
func readTree(size int64, r tlog.HashReader) (*tree, error) {
	t := &tree{size: size}
	levels, indexes := edgeIndexes(size)
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return nil, err
	}
	for i, level := range levels {
		t.edge[level] = hashes[i]
	}
	return t, nil
}

// storedHashes are the hashes of a log in a file, in the order of tlog's storage.
type storedHashes struct{ file io.ReaderAt }

// ReadHashes is that of tlog.HashReader.
func (s storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if _, err := s.file.ReadAt(out[i][:], x*tlog.HashSize); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// storedSize is how many bytes the stored hashes of a log of that size take.
func storedSize(size int64) int64 { return tlog.StoredHashCount(size) * tlog.HashSize }
