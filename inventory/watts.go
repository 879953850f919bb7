package inventory

import "fmt"

// Watts says a power for people: 120 W, 20.0 kW.
func Watts(w float64) string {
	if w >= 10000 {
		return fmt.Sprintf("%.1f kW", w/1000)
	}
	return fmt.Sprintf("%.0f W", w)
}
