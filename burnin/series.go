package burnin

// Thin returns s with about n points at most: of many points it keeps the
// lowest and the highest of each stretch of time, since a peak must never
// vanish from a report, and everything that is not a finite number, since
// Judge must see it. A run of hours on sixteen cards samples a million points;
// an agent thins its series before it sends them.
func (s Series) Thin(n int) Series {
	n = max(n, 2)
	if len(s.V) <= n || len(s.T) != len(s.V) {
		return s
	}
	out := Series{Name: s.Name, Unit: s.Unit, Check: s.Check}
	keep := func(i int) { out.T, out.V = append(out.T, s.T[i]), append(out.V, s.V[i]) }
	stretch := (len(s.V) + n/2 - 1) / (n / 2)
	for from := 0; from < len(s.V); from += stretch {
		to := min(from+stretch, len(s.V))
		lo, hi := -1, -1
		for i := from; i < to; i++ {
			if !finite(s.V[i]) {
				continue
			}
			if lo < 0 || s.V[i] < s.V[lo] {
				lo = i
			}
			if hi < 0 || s.V[i] > s.V[hi] {
				hi = i
			}
		}
		for i := from; i < to; i++ {
			if i == lo || i == hi || !finite(s.V[i]) {
				keep(i)
			}
		}
	}
	return out
}
