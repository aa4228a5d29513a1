package epochs

import (
	"bytes"
	"math/bits"
)

// pathBytes holds the longest path: 32 bits of an index and 63 of a version.
const pathBytes = 12

// path leads from the root of the tree to a node: n bits, the first in the highest bit
// of b. What is behind them is zero, so that paths of which none begins another are in
// the order of their bytes.
type path struct {
	b [pathBytes]byte
	n uint8
}

// child is the path that goes on by one bit.
func (p path) child(bit int) path {
	if bit != 0 {
		p.b[p.n/8] |= 0x80 >> (p.n % 8)
	}
	p.n++
	return p
}

func (p path) bit(i uint8) int { return int(p.b[i/8]>>(7-i%8)) & 1 }

// parent is the path of the first n bits.
func (p path) parent(n uint8) path {
	out := path{}
	for i := range n {
		out = out.child(p.bit(i))
	}
	return out
}

// begins reports whether the path leads to q, or to where q comes by.
func (p path) begins(q path) bool { return p.n <= q.n && q.parent(p.n) == p }

// compare is the order of nodes in a tree.
func (p path) compare(q path) int {
	if c := bytes.Compare(p.b[:], q.b[:]); c != 0 {
		return c
	}
	return int(p.n) - int(q.n)
}

// Leaf names a key version.
type Leaf struct{ Index, Version uint32 }

// path is the index in 32 bits and the version in Elias' gamma code, whose words are
// none the beginning of another, and short for small numbers: the first versions of a
// key, which most keys never leave, take one to seven steps.
func (l Leaf) path() path {
	p := path{}
	for i := range 32 {
		p = p.child(int(l.Index>>(31-i)) & 1)
	}
	size := bits.Len32(l.Version)
	for range size - 1 {
		p = p.child(0)
	}
	for i := range size {
		p = p.child(int(l.Version>>(size-1-i)) & 1)
	}
	return p
}
