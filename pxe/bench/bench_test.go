package main

import "testing"

// TestParsePerf reads what perfdhcp 2.2 wrote.
func TestParsePerf(t *testing.T) {
	const text = `***Rate statistics***
Rate: 2498.73 4-way exchanges/second, expected rate: 2500

***Statistics for: DISCOVER-OFFER***
sent packets: 4
received packets: 3
drops: 1
avg delay: 0.364 ms
collected packets: 0

***Statistics for: REQUEST-ACK***
sent packets: 3
received packets: 2
avg delay: 0.350 ms

***Timestamps for packets: DISCOVER-OFFER***
sent / received: 000000.000242 / 000000.001242
sent / received: 000000.000300 / 000000.003300
sent / received: 000001.000000 / 000001.002000
***Timestamps for packets: REQUEST-ACK***
sent / received: 000000.000242 / 000000.000742
sent / received: 000000.000242 / 000000.000342
`
	p, err := parsePerf(text)
	if err != nil {
		t.Fatal(err)
	}
	if p.drops() != 0.5 || p.rate() != 2./period || p.offer.avg != 0.364 || len(p.offer.delays) != 3 || p.offer.p99() < 2.99 || p.ack.p99() > 0.51 {
		t.Errorf("read %+v", p)
	}
	for _, bad := range []string{"", text[:200], text[:len(text)-60]} {
		if _, err := parsePerf(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestRound(t *testing.T) {
	for in, want := range map[float64]float64{0: 0, 1.2345: 1.23, 0.99949: 0.999, 12345: 12300, 0.00012345: 0.000123, -2.555: -2.56} {
		if got := round(in); got != want {
			t.Errorf("round(%g) = %g, want %g", in, got, want)
		}
	}
}
