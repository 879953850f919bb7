package config

import (
	"fmt"
	"time"
)

// A Curtail is a weekly time in which the site gives power back.
type Curtail struct {
	Name     string
	Days     []time.Weekday // of its beginning; none: every day
	From, To time.Duration  // since midnight; To at or before From: of the next day
	Watts    float64
	Within   time.Duration
}

type rawCurtail struct {
	at
	Name   text   `yaml:"name" need:"yes" doc:"name of the window"`
	Days   []text `yaml:"days" enum:"mon tue wed thu fri sat sun" doc:"days on which it begins; every day (default)"`
	From   text   `yaml:"from" need:"yes" format:"clock" doc:"when it begins, in this server's time: \"17:00\""`
	To     text   `yaml:"to" need:"yes" format:"clock" doc:"when it ends; at or before from: on the next day"`
	Watts  number `yaml:"watts" need:"yes" doc:"how much is given back, in watts"`
	Within text   `yaml:"within" format:"duration" doc:"given back so long after its beginning; 10m (default)"`
}

var weekdays = map[string]time.Weekday{"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}

func (p *parser) curtail(raw []rawCurtail) {
	names := map[string]int{}
	for _, r := range raw {
		c := Curtail{Name: p.word(r.Name), From: p.clock(r.From), To: p.clock(r.To), Watts: r.Watts.v, Within: 10 * time.Minute}
		p.unique(names, r.Name.at, "curtail window", c.Name)
		for _, d := range r.Days {
			day, ok := weekdays[d.v]
			if d.v != "" && !ok {
				p.fail(d.at, "days are mon, tue, wed, thu, fri, sat, sun", "there is no day %q", clip(d.v))
			}
			c.Days = append(c.Days, day)
		}
		if r.Watts.set() && !(c.Watts > 0 && c.Watts < 1e9) {
			p.fail(r.Watts.at, "20000 is 20 kW", "%v W cannot be given back", c.Watts)
		}
		if r.Within.v != "" {
			if c.Within = p.duration(r.Within); c.Within < time.Minute && c.Within > 0 {
				p.fail(r.Within.at, "the quickest takes a minute until it is measured", "%s is too short", r.Within.v)
			}
		}
		p.site.Curtail = append(p.site.Curtail, c)
	}
}

// clock reads a time of day.
func (p *parser) clock(t text) time.Duration {
	if t.v == "" {
		return 0
	}
	at, err := time.Parse("15:04", t.v)
	if err != nil {
		p.fail(t.at, `write it like "17:00"`, "%q is no time of day", clip(t.v))
		return 0
	}
	return time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
}

func (c Curtail) String() string {
	return fmt.Sprintf("%s %s to %s %.0f W", c.Name, time.Time{}.Add(c.From).Format("15:04"), time.Time{}.Add(c.To).Format("15:04"), c.Watts)
}
