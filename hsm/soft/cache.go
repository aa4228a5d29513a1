package soft

import (
	"hash/maphash"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cacheShards keeps callers on different processors out of each other's way.
const cacheShards = 16

// cache keeps the values used last, and releases those it drops.
type cache[K comparable, V any] struct {
	seed   maphash.Seed
	shards [cacheShards]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu  sync.Mutex // guards lru
	lru *simplelru.LRU[K, V]
}

func newCache[K comparable, V any](size int, release func(V)) *cache[K, V] {
	c := &cache[K, V]{seed: maphash.MakeSeed()}
	each := max(1, (size+cacheShards-1)/cacheShards)
	for i := range c.shards {
		// The only error is a size below 1.
		c.shards[i].lru, _ = simplelru.NewLRU(each, func(_ K, v V) { release(v) })
	}
	return c
}

func (c *cache[K, V]) shard(k K) *shard[K, V] {
	return &c.shards[maphash.Comparable(c.seed, k)%cacheShards]
}

func (c *cache[K, V]) get(k K) (V, bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lru.Get(k)
}

// put adds a value. A value that another call has put there meanwhile is
// released: whoever holds it fetches again.
func (c *cache[K, V]) put(k K, v V) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(k)
	s.lru.Add(k, v)
}

func (c *cache[K, V]) purge() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.lru.Purge()
		s.mu.Unlock()
	}
}
