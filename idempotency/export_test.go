package idempotency

// WithoutLock takes the advisory lock away, which must change nothing but how often a handler runs.
func (p *Postgres) WithoutLock() *Postgres {
	p.noLock = true
	return p
}
