package burnin

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// Judge makes the verdict of a report from its profile, hardware and results;
// it ignores the Verdict that the report carries. It is pure and fails closed:
//
//   - PASS only if every required check of the profile has exactly one result
//     that is a real pass (see below), no check failed, and the report names
//     the hardware and the image it is about.
//   - REPAIR if a check failed, whether it was required or not: Repairs says
//     what to do. What else was not proven is among the Reasons.
//   - INCONCLUSIVE otherwise; the Reasons name what did not run.
//
// A pass is not believed when it did no work, when a number in it is NaN or
// infinite, when one of its findings failed or contradicts its own limit (all
// Fail), when it took longer than its deadline or holds a finding that could
// not be measured (Error), when every finding was skipped (Skip), or when it
// was simulated and the site is no lab.
func Judge(r Report) Verdict {
	j := judgement{r: r}
	if err := r.Profile.Validate(); err != nil {
		j.unproven("%v", err)
	}
	if r.Node == "" {
		j.unproven("the report does not name its node")
	}
	if r.Image == "" {
		j.unproven("the report does not name the image it was made on")
	}
	if d := r.Hardware.Digest(); r.HWDigest != d {
		j.unproven("the report is for other hardware: it names digest %.12q, what was found has %.12q", r.HWDigest, d)
	}
	for _, g := range r.Hardware.GPUs {
		if !g.Simulated {
			continue
		}
		j.simulated = true
		if !r.Lab {
			j.unproven("GPU %s is simulated, and this site is no lab", g.Address)
		}
	}
	asked := map[string]bool{}
	for _, s := range r.Profile.Checks {
		asked[s.ID] = true
		n := 0
		for _, res := range r.Results {
			if res.ID == s.ID {
				n++
				j.result(res, s)
			}
		}
		switch {
		case n == 0 && s.Required:
			j.unproven("%s did not run, and it is required", s.ID)
		case n == 0:
			j.note("%s did not run; it is not required", s.ID)
		case n > 1:
			j.unproven("%s has %d results: which one counts is unknown", s.ID, n)
		}
	}
	for _, res := range r.Results {
		if !asked[res.ID] {
			j.unproven("a result of %q, which the profile does not ask for", res.ID)
			// Its failures count all the same: the hardware is at fault.
			j.result(res, Spec{ID: res.ID})
		}
	}
	return j.verdict()
}

// A repair is labelled at the end, once for all the findings that ask for it.
type repair struct {
	Repair
	simulated bool
}

type judgement struct {
	r         Report
	failed    []string
	open      []string // not proven
	notes     []string
	repairs   []repair
	passed    int
	simulated bool
}

func (j *judgement) unproven(format string, args ...any) {
	j.open = append(j.open, fmt.Sprintf(format, args...))
}

func (j *judgement) note(format string, args ...any) {
	j.notes = append(j.notes, fmt.Sprintf(format, args...))
}

func (j *judgement) result(res Result, s Spec) {
	sim := j.r.simulated(res)
	j.simulated = j.simulated || sim
	a := assess(res, s, j.r.Series)
	if sim && !j.r.Lab {
		// Neither its pass nor its failure says anything about this machine.
		if s.Required {
			j.unproven("%s was simulated, and this site is no lab", res.ID)
		} else {
			j.note("%s was simulated, and this site is no lab: it counts for nothing", res.ID)
		}
		return
	}
	why := "no reason given"
	if len(a.why) > 0 {
		why = strings.Join(a.why, "; ")
	}
	switch a.status {
	case Pass:
		j.passed++
	case Fail:
		j.failed = append(j.failed, fmt.Sprintf("%s failed: %s", res.ID, why))
		for _, f := range a.bad {
			j.ask(repairOf(j.r, f), sim)
		}
		if len(a.bad) == 0 {
			j.ask(Repair{Verb: "check", What: subjectOf(res.ID), Why: why}, sim)
		}
	case Skip:
		if s.Required {
			j.unproven("%s was skipped, and it is required: %s", res.ID, why)
		} else {
			j.note("%s was skipped: %s", res.ID, why)
		}
	default:
		if s.Required {
			j.unproven("%s could not run, and it is required: %s", res.ID, why)
		} else {
			j.note("%s could not run: %s", res.ID, why)
		}
	}
}

// ask adds a repair, or another why to the same one: a lost card fails every
// check after it and is still reseated once.
func (j *judgement) ask(rep Repair, sim bool) {
	i := slices.IndexFunc(j.repairs, func(have repair) bool { return have.same(rep) })
	if i < 0 {
		j.repairs = append(j.repairs, repair{rep, sim})
		return
	}
	j.repairs[i].simulated = j.repairs[i].simulated || sim
	if gist, _, _ := strings.Cut(rep.Why, " ("); !strings.Contains(j.repairs[i].Why, gist) {
		j.repairs[i].Why += "; " + rep.Why
	}
}

func (j *judgement) verdict() Verdict {
	v := Verdict{Answer: PASS, Simulated: j.simulated}
	for _, rep := range j.repairs {
		if rep.simulated {
			rep.Why += " (simulated)"
		}
		v.Repairs = append(v.Repairs, rep.Repair)
	}
	switch {
	case len(j.failed) > 0:
		v.Answer = REPAIR
	case len(j.open) > 0:
		v.Answer = INCONCLUSIVE
	default:
		v.Reasons = append(v.Reasons, fmt.Sprintf("%d checks passed, every required one among them", j.passed))
	}
	v.Reasons = append(v.Reasons, j.failed...)
	v.Reasons = append(v.Reasons, j.open...)
	v.Reasons = append(v.Reasons, j.notes...)
	if j.simulated {
		v.Reasons = append(v.Reasons, "simulated parts are in this report")
	}
	return v
}

// simulated tells whether what res says is about a part that is not there.
// Hardware that inspection labelled simulated labels every GPU result, also
// when a check forgot to.
func (r Report) simulated(res Result) bool {
	if res.Simulated {
		return true
	}
	if !strings.HasPrefix(res.ID, "gpu-") {
		return false
	}
	for _, g := range r.Hardware.GPUs {
		if g.Simulated {
			return true
		}
	}
	return false
}

// assessment is what a result is worth.
type assessment struct {
	status Status
	why    []string
	bad    []Finding // the findings that failed
}

func assess(res Result, s Spec, series []Series) assessment {
	a := assessment{status: res.Status}
	if _, ok := statusNames[res.Status]; !ok {
		a.status = Error
		a.why = append(a.why, "it has no status")
	}
	if res.Reason != "" {
		a.why = append(a.why, res.Reason)
	}
	// worsen keeps the worst: a failure is certain, an error only unproven.
	worsen := func(to Status, format string, args ...any) {
		if to == Fail || a.status == Pass || a.status == Skip {
			a.status = to
		}
		if why := fmt.Sprintf(format, args...); !strings.Contains(res.Reason, why) {
			a.why = append(a.why, why)
		}
	}
	claimed := a.status
	if !KnownCheck(res.ID) {
		worsen(Error, "there is no check %q", res.ID)
	}
	skipped := 0
	for _, f := range res.Findings {
		what := strings.TrimSpace(f.Item + " " + f.Name)
		switch f.Status {
		case Fail:
			a.bad = append(a.bad, f)
			worsen(Fail, "%s", f.String())
		case Pass:
			switch met, known := meets(f); {
			case !finite(f.Value):
				a.bad = append(a.bad, f)
				worsen(Fail, "%s measured %v", what, f.Value)
			case known && !met:
				a.bad = append(a.bad, f)
				worsen(Fail, "%s, which it calls a pass", f.String())
			}
		case Skip:
			skipped++
		default:
			worsen(Error, "%s could not be measured", what)
		}
	}
	if claimed == Pass {
		switch {
		case !finite(res.Work):
			worsen(Fail, "the work it did is %v", res.Work)
		case res.Work <= 0:
			worsen(Fail, "it did no work")
		}
		for _, sr := range series {
			if sr.Check != res.ID {
				continue
			}
			if i := slices.IndexFunc(sr.V, func(v float64) bool { return !finite(v) }); i >= 0 {
				worsen(Fail, "%s read %v", sr.Name, sr.V[i])
			}
		}
		if s.Deadline > 0 && res.Took > s.Deadline {
			worsen(Error, "it took %s with a deadline of %s", res.Took, s.Deadline)
		}
		if a.status == Pass && skipped > 0 && skipped == len(res.Findings) {
			worsen(Skip, "everything in it was skipped")
		}
	}
	return a
}

// meets compares a finding with its own limit. It knows limits of the form
// "OP NUMBER" with an optional unit equal to the finding's; others are the
// check's own business.
func meets(f Finding) (met, known bool) {
	op, bound, ok := f.bound()
	if !ok {
		return false, false
	}
	switch op {
	case "<=":
		return f.Value <= bound, true
	case ">=":
		return f.Value >= bound, true
	case "<":
		return f.Value < bound, true
	case ">":
		return f.Value > bound, true
	default:
		return f.Value == bound, true
	}
}

// bound takes the limit apart.
func (f Finding) bound() (op string, bound float64, ok bool) {
	rest := strings.TrimSpace(f.Limit)
	for _, o := range []string{"<=", ">=", "<", ">", "="} {
		if num, found := strings.CutPrefix(rest, o); found {
			op, rest = o, strings.TrimSpace(num)
			break
		}
	}
	if op == "" {
		return "", 0, false
	}
	num, unit, _ := strings.Cut(rest, " ")
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || !finite(v) || (unit != "" && strings.TrimSpace(unit) != f.Unit) {
		return "", 0, false
	}
	return op, v, true
}

// String is the finding in words: "GPU 0000:01:00.0 memory errors 3, limit = 0".
func (f Finding) String() string {
	s := strings.TrimSpace(f.Item+" "+f.Name) + " " + number(f.Value)
	if f.Unit != "" {
		s += " " + f.Unit
	}
	if f.Limit != "" {
		s += ", limit " + f.Limit
	}
	return s
}

// number writes v for people: four digits at most after what matters.
func number(v float64) string {
	switch a := math.Abs(v); {
	case !finite(v) || a >= 1e15:
		return fmt.Sprint(v)
	case v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}
