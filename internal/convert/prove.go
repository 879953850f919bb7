package convert

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"smelt/burnin"
	"smelt/internal/store"
	"smelt/inventory"
)

// reportID names the report of one entry into burn-in.
func reportID(n inventory.Node) string {
	run := "b"
	if n.Plan != nil {
		run = n.Plan.Run
	}
	return run + "-" + stamp(n.Since)
}

// profile is what the node must pass: as approved, or for a node without a
// plan (in service) as its class says. Its Name is set in any case.
func (t *turn) profile() (burnin.Profile, bool) {
	name := cmp.Or(t.n.Spec.Profile, t.Site.Classes[t.n.Spec.Class].Profile)
	if t.n.Plan != nil {
		name = t.n.Plan.Profile
	} else if name == "" && t.n.Passed != nil {
		name = t.n.Passed.Profile
	}
	p, ok := t.Site.Profiles[name]
	p.Name = name
	if t.n.Root == inventory.RootRAM {
		// No disk of it is in use, and none may be written to try it.
		p.Checks = slices.DeleteFunc(slices.Clone(p.Checks), func(s burnin.Spec) bool { return s.ID == burnin.Disk })
	}
	return p, ok
}

// burningIn waits for the agent's report, which comes as an observation.
func (t *turn) burningIn() error {
	if !asApproved(t.n) {
		return t.failChanged(t.n.Plan.Hardware)
	}
	if h, err := t.passedOnce(); h != nil || err != nil {
		if err != nil {
			return err
		}
		return t.coldStart(h)
	}
	if p, ok := t.profile(); !ok {
		t.note("there is no burn-in profile %q: put it back into site.yaml", p.Name)
		return nil
	}
	if l := t.load(); l.Pause != "" || l.Cap > 0 {
		t.note(heldForPower)
	} else {
		t.unsay(heldForPower)
	}
	return t.watch(t.device())
}

const heldForPower = "its burn-in is held for want of power: smelt power status"

// reVerifying is burn-in for a node in service: the cluster gives it no new
// work, what runs may end, and then it proves itself again.
func (t *turn) reVerifying() error {
	if t.busy() {
		return nil
	}
	h, err := t.here()
	if err != nil {
		return err
	}
	switch {
	case h.mark(markPassed) != nil:
		if why := t.unproven(h); why != "" {
			return t.disown(why)
		}
		if t.Join == nil {
			t.move(inventory.InService, "it passed again", nil)
			return nil
		}
		if wait := t.pausing(); wait > 0 {
			t.again(wait)
			return nil
		}
		t.admit()
		return nil
	case t.Join == nil, h.mark(markPrepared) != nil:
		return t.burningIn()
	}
	if wait := t.pausing(); wait > 0 {
		t.again(wait)
		return nil
	}
	t.drain("re-verification", func(t *turn) { t.setMark(markPrepared, "the cluster gives it no work", nil) })
	return nil
}

// judge makes a verdict of what the agent measured. What was asked for, which
// cards are simulated and whether this is a lab is ours to say, whatever the
// report says. On which machine, image and order it was measured is the
// report's to say, and must be what the node is.
func (t *turn) judge(r reported) error {
	recheck := inventory.Task{Verb: "check", What: "the machine and its burn-in report", Proof: "burnin"}
	if r.Report == "" {
		recheck.Why = "burn-in brought no report: " + r.Error
		return t.fail("burnin-incomplete", recheck.Why, recheck)
	}
	blob, err := t.Store.Blob(t.ctx, t.n.ID, r.Report)
	if err != nil {
		return err
	}
	rep, err := burnin.ParseJSON(bytes.NewReader(blob.Data))
	if err != nil {
		recheck.Why = "its burn-in report cannot be read"
		return t.fail("burnin-incomplete", err.Error(), recheck)
	}
	if why := t.notOurs(rep); why != "" {
		recheck.Why = why
		return t.fail("burnin-incomplete", why, recheck)
	}
	rep.Position = t.n.Spec.Position
	rep.Profile, _ = t.profile()
	rep.Hardware = t.shape(t.n, rep.Hardware)
	rep.HWDigest = rep.Hardware.Digest()
	rep.Lab = t.Site.Lab
	rep.Verdict = burnin.Judge(rep)
	changed, lost := "", []inventory.Task(nil)
	if rep.HWDigest != t.n.Hardware.Digest() {
		changed, lost = changes(t.n.Hardware, rep.Hardware)
		rep.Verdict.Reasons = append([]string{"measured on other hardware: " + changed}, rep.Verdict.Reasons...)
		if rep.Verdict.Answer == burnin.PASS {
			rep.Verdict.Answer = burnin.INCONCLUSIVE
		}
	}
	if err := t.file(rep); err != nil {
		return err
	}
	t.boundary(t.n.ID, "report filed")

	cold, err := t.cold()
	if err != nil {
		return err
	}
	v := rep.Verdict
	pass := v.Answer == burnin.PASS && (!v.Simulated || t.Site.Lab)
	e := inventory.Event{Kind: inventory.KindReport, Actor: system, Report: rep.ID, Reason: "burn-in: " + string(v.Answer),
		Evidence: map[string]string{"answer": string(v.Answer), "simulated": fmt.Sprint(v.Simulated)}}
	if pass {
		t.after = append(t.after, t.takePeak)
		if p, err := t.storedPeak(t.ctx, t.n.ID); err != nil {
			return err
		} else if p.Report == rep.ID && p.Watts > 0 {
			e.Evidence["peak"] = fmt.Sprintf("%.0f W, the highest mean over five minutes", p.Watts)
		}
		e.Passed = &inventory.Passed{Report: rep.ID, Hardware: rep.HWDigest, Image: rep.Image, Profile: rep.Profile.Name, Simulated: v.Simulated, At: t.at}
	}
	t.add(e)
	why := string(v.Answer)
	if len(v.Reasons) > 0 {
		why = v.Reasons[0]
	}
	switch {
	case pass && t.n.State == inventory.ReVerifying:
		t.setMark(markPassed, "burn-in passed: report "+rep.ID, nil)
		return nil
	case pass && !cold:
		t.setMark(markPassed, "burn-in passed: report "+rep.ID+"; it must start from its own disk yet", nil)
		return nil
	case pass:
		t.move(inventory.Joining, "burn-in passed: report "+rep.ID, nil)
		return nil
	case v.Answer == burnin.REPAIR && len(v.Repairs) > 0:
		var tasks []inventory.Task
		for _, rp := range v.Repairs {
			tasks = append(tasks, inventory.Task{Verb: rp.Verb, What: rp.What, Where: rp.Where, Why: rp.Why, Proof: "burnin"})
		}
		return t.fail("burnin-repair", why, tasks...)
	}
	if changed != "" {
		for i := range lost {
			lost[i].Proof = "burnin"
		}
		return t.fail(hardwareChanged, changed, lost...)
	}
	recheck.Why = why
	return t.fail("burnin-incomplete", why, recheck)
}

// notOurs says why rep is no report of what the node was ordered to measure,
// or "".
func (t *turn) notOurs(rep burnin.Report) string {
	switch {
	case rep.Node != t.n.ID:
		return fmt.Sprintf("its report is about node %.64q", rep.Node)
	case rep.ID != reportID(t.n):
		return fmt.Sprintf("its report is %.64q, ordered was %q", rep.ID, reportID(t.n))
	case rep.Image != t.n.Image:
		return fmt.Sprintf("its report was made on image %.12q, it runs %.12q", rep.Image, t.n.Image)
	case t.n.Hardware == nil:
		return "no inspection of it is stored"
	}
	return ""
}

// file stores the report for people and programs. Its id follows from the
// node's state, so that filing it twice is one report.
func (t *turn) file(rep burnin.Report) error {
	var js, html bytes.Buffer
	if err := burnin.WriteJSON(&js, rep); err != nil {
		return err
	}
	if err := burnin.WriteHTML(&html, rep); err != nil {
		return err
	}
	for _, b := range []store.Blob{
		{Name: "reports/" + rep.ID + ".json", Type: "application/json", Data: js.Bytes()},
		{Name: "reports/" + rep.ID + ".html", Type: "text/html; charset=utf-8", Data: html.Bytes()},
	} {
		b.Node, b.At = t.n.ID, t.at
		if err := t.Store.PutBlob(t.ctx, b); err != nil {
			return err
		}
	}
	return nil
}
