package epochs

import (
	"encoding/binary"
	"slices"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// seedSize is the length of the secret of a node, and of a destruction key.
const seedSize = 32

// tree is a tree of secrets from which some leaves were taken out for good: what is left
// of it are the nodes that lead to all others, and to none of those.
//
// It is the secret tree of RFC 9420, section 9: the secret of a child is
// HKDF-Expand(secret, "trikey/v1/epochs/left" or "…/right", 32), and a secret from which
// another was derived is deleted when that must be.
type tree struct {
	nodes []path        // in order; none begins another
	seeds *secret.Bytes // those of the nodes, one after the other; nil: none is left
}

// sides are the HKDF info of the children, with the counter of the only block.
var sides = [2][]byte{[]byte("trikey/v1/epochs/left\x01"), []byte("trikey/v1/epochs/right\x01")}

// newTree returns a tree with every leaf.
func newTree() (*tree, error) {
	seed, err := secret.Random(seedSize)
	return &tree{nodes: []path{{}}, seeds: seed}, err
}

// above finds the node that leads to a leaf; -1 when the leaf was taken out.
func (t *tree) above(leaf path) int {
	at, found := slices.BinarySearchFunc(t.nodes, leaf, path.compare)
	if !found {
		at--
	}
	if at < 0 || !t.nodes[at].begins(leaf) {
		return -1
	}
	return at
}

// walker derives leaves. It keeps the secrets on the way to the last one: neighbours
// share most of it.
type walker struct {
	tree  *tree
	seeds []byte // of the tree
	way   []byte // the secrets at each depth of last; in protected memory
	last  path
	from  uint8 // depth of the first secret in way
}

// walk runs f with a walker. What f derives is wiped after it.
func (t *tree) walk(f func(w *walker) error) error {
	way, err := secret.New((8*pathBytes + 1) * seedSize)
	if err != nil {
		return err
	}
	defer way.Wipe()
	if t.seeds == nil {
		return f(&walker{tree: t})
	}
	return t.seeds.Use(func(seeds []byte) error {
		return way.Use(func(way []byte) error {
			return secret.Derive(func() error { return f(&walker{tree: t, seeds: seeds, way: way, from: 0xff}) })
		})
	})
}

func (w *walker) at(depth uint8) []byte { return w.way[int(depth)*seedSize:][:seedSize] }

// leaf returns the destruction key of a leaf until the next call; nil when it was taken
// out.
func (w *walker) leaf(p path) []byte {
	node := w.tree.above(p)
	if node < 0 {
		return nil
	}
	start := w.tree.nodes[node].n
	depth := start
	if w.from == start && w.tree.nodes[node].begins(w.last) {
		for depth < min(p.n, w.last.n) && p.bit(depth) == w.last.bit(depth) {
			depth++
		}
	} else {
		copy(w.at(start), w.seeds[node*seedSize:][:seedSize])
	}
	for ; depth < p.n; depth++ {
		derive(w.at(depth+1), w.at(depth), p.bit(depth))
	}
	w.last, w.from = p, start
	return w.at(p.n)
}

func derive(dst, seed []byte, side int) {
	child := alg.MAC(seed, sides[side])
	copy(dst, child)
	clear(child)
}

// without returns the tree without some leaves; the tree itself stays as it is. changed
// is false when it has none of them.
func (t *tree) without(leaves []Leaf) (next *tree, changed bool, err error) {
	next = &tree{nodes: slices.Clone(t.nodes)}
	if t.seeds == nil {
		return next, false, nil
	}
	if next.seeds, err = secret.Fill(t.seeds.Len(), func(b []byte) error {
		return t.seeds.Use(func(from []byte) error { copy(b, from); return nil })
	}); err != nil {
		return nil, false, err
	}
	for _, l := range leaves {
		out := next.above(l.path())
		if out < 0 {
			continue
		}
		changed = true
		smaller, err := next.puncture(out, l.path())
		next.seeds.Wipe()
		if err != nil {
			return nil, false, err
		}
		next = smaller
	}
	return next, changed, nil
}

// puncture replaces the node above a leaf by the siblings of the way to the leaf.
func (t *tree) puncture(node int, leaf path) (*tree, error) {
	depth := leaf.n - t.nodes[node].n
	next := &tree{nodes: make([]path, 0, len(t.nodes)-1+int(depth))}
	size := cap(next.nodes) * seedSize
	if size == 0 {
		return next, nil
	}
	type made struct {
		path path
		seed []byte
	}
	var err error
	next.seeds, err = secret.Fill(size, func(dst []byte) error {
		return t.walk(func(w *walker) error {
			w.leaf(leaf)
			fresh := make([]made, 0, depth)
			siblings, err := secret.New(max(1, int(depth)) * seedSize)
			if err != nil {
				return err
			}
			defer siblings.Wipe()
			return siblings.Use(func(b []byte) error {
				for i := t.nodes[node].n; i < leaf.n; i++ {
					seed := b[len(fresh)*seedSize:][:seedSize]
					derive(seed, w.at(i), 1-leaf.bit(i))
					fresh = append(fresh, made{leaf.parent(i).child(1 - leaf.bit(i)), seed})
				}
				slices.SortFunc(fresh, func(a, b made) int { return a.path.compare(b.path) })
				put := func(p path, seed []byte) {
					copy(dst[len(next.nodes)*seedSize:], seed)
					next.nodes = append(next.nodes, p)
				}
				for i, p := range t.nodes {
					if i != node {
						put(p, w.seeds[i*seedSize:][:seedSize])
						continue
					}
					for _, m := range fresh {
						put(m.path, m.seed)
					}
				}
				return nil
			})
		})
	})
	return next, err
}

// nodeSize is the length of a node in a file: path, its length, secret.
const nodeSize = pathBytes + 1 + seedSize

// marshal returns the tree in protected memory: count 4 | nodes.
func (t *tree) marshal() (*secret.Bytes, error) {
	return secret.Fill(4+len(t.nodes)*nodeSize, func(dst []byte) error {
		binary.BigEndian.PutUint32(dst, uint32(len(t.nodes)))
		if t.seeds == nil {
			return nil
		}
		return t.seeds.Use(func(seeds []byte) error {
			for i, p := range t.nodes {
				at := dst[4+i*nodeSize:]
				copy(at, p.b[:])
				at[pathBytes] = p.n
				copy(at[pathBytes+1:], seeds[i*seedSize:][:seedSize])
			}
			return nil
		})
	})
}

// parseTree reads what marshal wrote.
func parseTree(b []byte) (*tree, error) {
	damaged := fault.New(fault.RecordDamaged, "the destruction keys are not what this release writes; were they written by a newer one?")
	if len(b) < 4 || (len(b)-4)%nodeSize != 0 || int(binary.BigEndian.Uint32(b)) != (len(b)-4)/nodeSize {
		return nil, damaged
	}
	t := &tree{}
	n := (len(b) - 4) / nodeSize
	for i := range n {
		at := b[4+i*nodeSize:]
		p := path{b: [pathBytes]byte(at), n: at[pathBytes]}
		if p.n > 8*pathBytes || p.parent(p.n) != p || i > 0 && (t.nodes[i-1].compare(p) >= 0 || t.nodes[i-1].begins(p)) {
			return nil, damaged
		}
		t.nodes = append(t.nodes, p)
	}
	if n == 0 {
		return t, nil
	}
	var err error
	t.seeds, err = secret.Fill(n*seedSize, func(dst []byte) error {
		for i := range n {
			copy(dst[i*seedSize:], b[4+i*nodeSize+pathBytes+1:][:seedSize])
		}
		return nil
	})
	return t, err
}
