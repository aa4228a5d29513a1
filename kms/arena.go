package kms

// arena keeps byte strings in a few large blocks. What was added never changes, and stays
// readable for whoever got it.
type arena struct {
	blocks [][]byte
	live   int // bytes of what is kept
	dead   int // bytes of what was dropped
}

// ref is where a byte string is in an arena.
type ref struct {
	block, offset, size uint32
}

// arenaBlock is the size of a block.
const arenaBlock = 1 << 20

func (a *arena) add(content []byte) ref {
	last := len(a.blocks) - 1
	if last < 0 || len(a.blocks[last])+len(content) > cap(a.blocks[last]) {
		a.blocks = append(a.blocks, make([]byte, 0, max(arenaBlock, len(content))))
		last++
	}
	r := ref{uint32(last), uint32(len(a.blocks[last])), uint32(len(content))}
	a.blocks[last] = append(a.blocks[last], content...)
	a.live += len(content)
	return r
}

func (a *arena) get(r ref) []byte {
	if r.size == 0 {
		return nil
	}
	end := r.offset + r.size
	return a.blocks[r.block][r.offset:end:end]
}

func (a *arena) drop(r ref) {
	a.live -= int(r.size)
	a.dead += int(r.size)
}

// wasteful reports whether more is lost to what was dropped than is worth it.
func (a *arena) wasteful() bool { return a.dead > 4*arenaBlock && a.dead > a.live/2 }
