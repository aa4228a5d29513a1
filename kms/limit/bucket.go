package limit

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// shards is how many locks guard a set of buckets.
const shards = 64

// buckets is a bounded set of token buckets. The one that was used least lately makes
// room for a new one: a bucket that nobody has used for so long is full again.
type buckets[K comparable] struct {
	seed   maphash.Seed
	shards [shards]shard[K]
}

type shard[K comparable] struct {
	mu  sync.Mutex
	all *simplelru.LRU[K, *bucket] // guarded by mu
}

// bucket is a token bucket, and the rate that it was made for.
type bucket struct {
	rate    Rate
	limiter *rate.Limiter
}

func newBuckets[K comparable](most int) *buckets[K] {
	b := &buckets[K]{seed: maphash.MakeSeed()}
	for i := range b.shards {
		b.shards[i].all, _ = simplelru.NewLRU[K, *bucket](max(1, most/shards), nil) // fails for sizes below 1 only
	}
	return b
}

// take takes n tokens, or says after how long they will be there.
func (b *buckets[K]) take(k K, r Rate, n int, now time.Time) (wait time.Duration, ok bool) {
	s := &b.shards[maphash.Comparable(b.seed, k)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	own, found := s.all.Get(k)
	if !found {
		own = &bucket{r, rate.NewLimiter(rate.Limit(r.Items), r.Burst)}
		s.all.Add(k, own)
	}
	if own.rate != r { // it was changed
		own.rate = r
		own.limiter.SetLimitAt(now, rate.Limit(r.Items))
		own.limiter.SetBurstAt(now, r.Burst)
	}
	return own.take(n, now)
}

// take lets more through than the bucket holds when it is full: a batch that is larger
// than the burst could never pass otherwise. What it takes too much is a debt.
func (b *bucket) take(n int, now time.Time) (wait time.Duration, ok bool) {
	first := min(n, b.rate.Burst)
	if !b.limiter.AllowN(now, first) {
		missing := float64(first) - b.limiter.TokensAt(now)
		return time.Duration(missing / b.rate.Items * float64(time.Second)), false
	}
	for n -= first; n > 0; n -= b.rate.Burst {
		b.limiter.ReserveN(now, min(n, b.rate.Burst))
	}
	return 0, true
}
