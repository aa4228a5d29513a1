package engine

import (
	"hash/maphash"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cacheShards keeps callers on different processors out of each other's way.
const cacheShards = 16

// Cache keeps the values used last, and releases those it drops. It may be used
// concurrently.
type Cache[K comparable, V any] struct {
	seed   maphash.Seed
	shards [cacheShards]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu  sync.Mutex // guards lru
	lru *simplelru.LRU[K, V]
}

// NewCache returns a cache of size values.
func NewCache[K comparable, V any](size int, release func(V)) *Cache[K, V] {
	c := &Cache[K, V]{seed: maphash.MakeSeed()}
	each := max(1, (size+cacheShards-1)/cacheShards)
	for i := range c.shards {
		// The only error is a size below 1.
		c.shards[i].lru, _ = simplelru.NewLRU(each, func(_ K, v V) { release(v) })
	}
	return c
}

func (c *Cache[K, V]) shard(k K) *shard[K, V] {
	return &c.shards[maphash.Comparable(c.seed, k)%cacheShards]
}

// Get returns the value of a key.
func (c *Cache[K, V]) Get(k K) (V, bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lru.Get(k)
}

// Put adds a value. A value that another call has put there meanwhile is
// released: whoever holds it fetches again.
func (c *Cache[K, V]) Put(k K, v V) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(k)
	s.lru.Add(k, v)
}

// Remove drops a value.
func (c *Cache[K, V]) Remove(k K) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.Remove(k)
}

// RemoveIf drops the values whose keys f says so of.
func (c *Cache[K, V]) RemoveIf(f func(K) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, k := range s.lru.Keys() {
			if f(k) {
				s.lru.Remove(k)
			}
		}
		s.mu.Unlock()
	}
}

// Purge drops every value.
func (c *Cache[K, V]) Purge() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.lru.Purge()
		s.mu.Unlock()
	}
}
