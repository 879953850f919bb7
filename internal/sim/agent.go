package sim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"smelt/burnin"
	"smelt/internal/api"
	"smelt/inventory"
)

// handoff is what the installed system was left on its disk.
type handoff = api.Handoff

// agent is what runs on the machine during one life.
type agent struct {
	life
	server  string
	mode    string
	session string
	print   string // fingerprint of its key
	fence   uint64
	key     ed25519.PublicKey // of the site
	results map[string]api.Result
	image   string // installed: digest it runs from
	start   string // installed: by what it was started
}

// ram runs the agent of the RAM system.
func (l life) ram(ctx context.Context, args map[string]string) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return
	}
	sum := sha256.Sum256(pub)
	a := &agent{life: l, server: args["smelt.server"], mode: args["smelt.mode"], print: hex.EncodeToString(sum[:]),
		key: l.site.SiteKey, results: map[string]api.Result{}}
	l.say(ctx, "enrols (%s)", a.mode)
	refused := 0
	for {
		var e api.Enrolled
		status, err := a.post(ctx, api.PathEnrol, api.Enrol{Nonce: args["smelt.nonce"], Key: pub, Version: "sim", Hardware: l.cfg.Hardware}, &e)
		if err == nil && status == http.StatusOK {
			a.session, a.fence = e.Session, e.Fence
			break
		}
		if status == http.StatusUnauthorized {
			refused++
		}
		if ctx.Err() != nil {
			return
		}
		if refused == 3 {
			// Refused for good: a new boot brings a new nonce.
			go l.reboot(l.boot)
			<-ctx.Done()
			return
		}
		if l.pause(ctx, 5) != nil {
			return
		}
	}
	a.obey(ctx)
}

// installed runs the agent of the system on the disk.
func (l life) installed(ctx context.Context, d disk) {
	a := &agent{life: l, server: d.handoff.Server, mode: "installed", session: d.handoff.Session, fence: d.handoff.Fence,
		key: d.handoff.SiteKey, results: map[string]api.Result{}, image: d.image, start: cmp.Or(d.start, "disk")}
	for !a.inventory(ctx, "") {
		if l.pause(ctx, 5) != nil {
			return
		}
	}
	a.obey(ctx)
}

// obey asks for orders and carries them out until the machine is switched off.
func (a *agent) obey(ctx context.Context) {
	last := ""
	for ctx.Err() == nil {
		a.say(ctx, "asks for its order")
		var o api.Order
		status, err := a.order(ctx, last, &o)
		if err != nil || status != http.StatusOK {
			if status == http.StatusUnauthorized && a.mode != "installed" {
				// Its session ended: only a new boot brings another.
				go a.reboot(a.boot)
				<-ctx.Done()
				return
			}
			if a.pause(ctx, 5) != nil {
				return
			}
			continue
		}
		if o.Fence < a.fence {
			a.say(ctx, "refuses order %s: fence %d is below %d", o.ID, o.Fence, a.fence)
			last = o.ID
			continue
		}
		a.fence = o.Fence
		a.alive(ctx, func() { a.Machine.load = o.Load })
		if r, ok := a.results[o.ID]; ok {
			if a.deliver(ctx, r) {
				last = o.ID
			}
			continue
		}
		a.say(ctx, "%s (%s)", o.Kind, o.ID)
		r, done := a.carryOut(ctx, o)
		if done {
			r.Order, r.Kind = o.ID, o.Kind
			a.results[o.ID] = r
			if a.deliver(ctx, r) {
				last = o.ID
			}
			continue
		}
		if o.Kind == api.OrderWait || o.Kind == api.OrderInspect {
			last = o.ID
			continue
		}
		last = "" // ask for the same order again: its permit was not to be had
		if a.pause(ctx, 2) != nil {
			return
		}
	}
}

// order asks for the order after last, or for another load than the one obeyed.
func (a *agent) order(ctx context.Context, last string, o *api.Order) (int, error) {
	var load inventory.Load
	a.alive(ctx, func() { load = a.Machine.load })
	query := url.Values{"after": {last}, "load": {load.String()}}
	return a.call(ctx, http.MethodGet, api.PathOrder+"?"+query.Encode(), nil, o)
}

func (a *agent) deliver(ctx context.Context, r api.Result) bool {
	status, err := a.post(ctx, api.PathResult, r, nil)
	if err == nil && status < 300 {
		return true
	}
	_ = a.pause(ctx, 3)
	return false
}

// carryOut does what the order says; done is false when there is no result to tell.
func (a *agent) carryOut(ctx context.Context, o api.Order) (r api.Result, done bool) {
	fail := func(cause, format string, args ...any) (api.Result, bool) {
		return api.Result{Cause: cause, Error: fmt.Sprintf(format, args...)}, ctx.Err() == nil
	}
	switch o.Kind {
	case api.OrderWait:
		return r, false
	case api.OrderInspect:
		for !a.inventory(ctx, o.ID) {
			if a.pause(ctx, 3) != nil {
				break
			}
		}
		return r, false
	case api.OrderReboot:
		go a.reboot(a.boot)
		<-ctx.Done()
		return r, false
	case api.OrderOff:
		go func() { _ = a.PowerOff(context.Background()) }()
		<-ctx.Done()
		return r, false
	case api.OrderWipe:
		return a.wipe(ctx, o, fail)
	case api.OrderImage:
		return a.write(ctx, o, fail)
	case api.OrderKexec:
		if a.cfg.Fault == "kexec" {
			return fail("other", "the running kernel is locked down (simulated)")
		}
		var d disk
		if !a.alive(ctx, func() { d = a.disk }) || d.handoff == nil {
			return fail("other", "there is no system on its disk")
		}
		d.start = "kexec"
		a.life.installed(ctx, d) // as long as the machine runs
		return r, false
	case api.OrderRAM:
		if o.RAM == nil || a.cfg.Fault == "ram" {
			return fail("verify", "chunk 1 does not have the digest that the manifest names (simulated)")
		}
		a.life.installed(ctx, disk{image: o.RAM.Manifest, handoff: &o.RAM.Handoff, start: "ram"}) // as long as the machine runs
		return r, false
	case api.OrderBurnin:
		return a.burnin(ctx, o, fail)
	case api.OrderJoin:
		if a.cfg.Fault == "join" {
			return fail("other", "slurmd does not start")
		}
		if a.cfg.Joined != nil {
			a.cfg.Joined(a.cfg.Name)
		}
		a.alive(ctx, func() { a.busy = true }) // jobs come at once
		return api.Result{OK: true}, true
	}
	return fail("other", "unknown kind of order %q", o.Kind)
}

// permitted verifies and uses the permit of o. An empty permit id means: do not
// write; ask for the order again.
func (a *agent) permitted(ctx context.Context, o api.Order, action string, disks []inventory.DiskID) (inventory.Permit, string) {
	if o.Permit == nil {
		return inventory.Permit{}, "the order carries no permit"
	}
	p, err := o.Permit.Open(a.key, time.Now())
	switch {
	case err != nil:
		return inventory.Permit{}, err.Error()
	case p.Agent != a.print:
		return inventory.Permit{}, "the permit is for another agent"
	case p.Action != action:
		return inventory.Permit{}, "the permit is for another step"
	case p.Fence != a.fence:
		return inventory.Permit{}, fmt.Sprintf("the permit has fence %d, the agent %d", p.Fence, a.fence)
	}
	for _, d := range disks {
		if !slices.ContainsFunc(p.Disks, d.Same) {
			return inventory.Permit{}, "the permit does not name " + d.String()
		}
		if !slices.ContainsFunc(a.cfg.Hardware.Disks, func(h inventory.Disk) bool { return d.Same(h.DiskID) }) {
			return inventory.Permit{}, "this machine has no " + d.String()
		}
	}
	status, err := a.post(ctx, api.PathPermit, api.PermitUse{ID: p.ID}, nil)
	if err != nil || status != http.StatusOK {
		return inventory.Permit{}, ""
	}
	return p, ""
}

type failing func(cause, format string, args ...any) (api.Result, bool)

func (a *agent) wipe(ctx context.Context, o api.Order, fail failing) (api.Result, bool) {
	if o.Wipe == nil {
		return fail("other", "a wipe order without disks")
	}
	p, why := a.permitted(ctx, o, "wipe", o.Wipe.Disks)
	if why != "" {
		return fail("permit", "%s", why)
	}
	if p.ID == "" {
		return api.Result{}, false
	}
	if a.cfg.Fault == "wipe" {
		return fail("disk", "write error at sector 0 (simulated)")
	}
	for _, d := range o.Wipe.Disks {
		if !a.touch(ctx, d, "wipe", p, o, func() { a.disk = disk{} }) {
			return api.Result{}, false
		}
		if a.pause(ctx, 3) != nil {
			return api.Result{}, false
		}
	}
	r := api.Result{OK: true}
	for _, d := range o.Wipe.Disks {
		r.Wiped = append(r.Wiped, inventory.Wiped{Disk: d, Level: o.Wipe.Level, Method: "simulated", Took: a.site.Pace})
	}
	return r, true
}

// touch changes the disk and logs it, in one piece.
func (a *agent) touch(ctx context.Context, d inventory.DiskID, action string, p inventory.Permit, o api.Order, change func()) bool {
	return a.alive(ctx, func() {
		change()
		a.writes = append(a.writes, Write{Machine: a.cfg.Name, Disk: d.Serial, Action: action, Permit: p.ID, Plan: p.Plan,
			Fence: a.fence, Order: o.ID, Boot: a.boot, At: time.Now()})
	})
}

func (a *agent) write(ctx context.Context, o api.Order, fail failing) (api.Result, bool) {
	if o.Image == nil {
		return fail("other", "an image order without an image")
	}
	p, why := a.permitted(ctx, o, "image", []inventory.DiskID{o.Image.Target})
	if why != "" {
		return fail("permit", "%s", why)
	}
	if p.ID == "" {
		return api.Result{}, false
	}
	digest := o.Image.Manifest
	begin := func() {
		if a.disk.part != digest {
			a.disk = disk{part: digest}
		}
		a.disk.image, a.disk.handoff = "", nil
	}
	if !a.touch(ctx, o.Image.Target, "image", p, o, begin) {
		return api.Result{}, false
	}
	for {
		n := 0
		if !a.alive(ctx, func() { n = a.disk.done }) {
			return api.Result{}, false
		}
		if n >= a.cfg.Chunks {
			break
		}
		if a.cfg.Fault == "image" && n == a.cfg.Chunks/2 {
			return fail("verify", "chunk %d does not have the digest that the manifest names (simulated)", n)
		}
		if a.pause(ctx, 1) != nil {
			return api.Result{}, false
		}
		a.alive(ctx, func() { a.disk.done = n + 1 })
		_, _ = a.post(ctx, api.PathProgress, api.Progress{Order: o.ID, Done: float64(n+1) / float64(a.cfg.Chunks), Doing: "writes the image"}, nil)
	}
	// What makes it boot is written last.
	h := o.Image.Handoff
	return api.Result{OK: true}, a.alive(ctx, func() { a.disk = disk{image: digest, handoff: &h} })
}

func (a *agent) burnin(ctx context.Context, o api.Order, fail failing) (api.Result, bool) {
	if o.Burnin == nil {
		return fail("other", "a burn-in order without a profile")
	}
	rep := burnin.Report{ID: o.Burnin.Report, Node: o.Burnin.Subject.Node, Profile: o.Burnin.Profile, Hardware: a.cfg.Hardware,
		HWDigest: a.cfg.Hardware.Digest(), Image: a.image, Agent: "sim", Started: time.Now().UTC(), Lab: o.Burnin.Lab}
	a.alive(ctx, func() {
		if h := a.disk.held; h != nil && h.ID == rep.ID {
			rep = *h
		}
		a.disk.held = nil
	})
	watching, end := context.WithCancel(ctx)
	defer end()
	a.lives.Go(func() { a.heed(watching, o.ID) })
	for len(rep.Results) < len(o.Burnin.Profile.Checks) {
		c := o.Burnin.Profile.Checks[len(rep.Results)]
		held := a.load(ctx).Pause != ""
		a.alive(ctx, func() {
			a.busy = !held
			if a.disk.held = nil; held {
				kept := rep
				a.disk.held = &kept
			} else {
				a.checks[c.ID]++
			}
		})
		_, _ = a.post(ctx, api.PathProgress, api.Progress{Order: o.ID, Done: float64(len(rep.Results)) / float64(len(o.Burnin.Profile.Checks)), Doing: c.ID}, nil)
		if held {
			a.say(ctx, "holds its burn-in before %s", c.ID)
			if a.pause(ctx, 1) != nil {
				return api.Result{}, false
			}
			continue
		}
		whole := true
		for range 2 {
			if a.pause(ctx, max(1, a.cfg.Slow)) != nil {
				return api.Result{}, false
			}
			if a.load(ctx).Pause == inventory.PauseNow {
				whole = false
				break
			}
		}
		if whole {
			rep.Results = append(rep.Results, a.check(c))
		}
	}
	a.alive(ctx, func() { a.busy = false })
	if a.cfg.Fault == "burnin" {
		return fail("other", "the burn-in could not run (simulated)")
	}
	rep.Finished = time.Now().UTC()
	return api.Result{OK: true, Report: &rep}, true
}

// load is the load that the machine obeys.
func (a *agent) load(ctx context.Context) (l inventory.Load) {
	a.alive(ctx, func() { l = a.Machine.load })
	return l
}

// heed asks for the order again and again while it is carried out: its load may change.
func (a *agent) heed(ctx context.Context, order string) {
	for ctx.Err() == nil {
		var o api.Order
		status, err := a.order(ctx, order, &o)
		switch {
		case err == nil && status == http.StatusOK && o.ID == order:
			a.alive(ctx, func() { a.Machine.load = o.Load })
		default:
			_ = a.pause(ctx, 5)
		}
	}
}

// check is a result that any profile's limits accept, unless the machine is
// told to have lost a card.
func (a *agent) check(c burnin.Spec) burnin.Result {
	r := burnin.Result{ID: c.ID, Status: burnin.Pass, Reason: "simulated", Work: 1, WorkUnit: "round", Started: time.Now().UTC(), Took: a.site.Pace, Simulated: true}
	if a.cfg.Fault == "gpu-lost" && c.ID == "gpu-presence" && len(a.cfg.Hardware.GPUs) > 0 {
		g := a.cfg.Hardware.GPUs[len(a.cfg.Hardware.GPUs)-1]
		r.Status, r.Reason = burnin.Fail, "a GPU fell off the bus"
		r.Findings = []burnin.Finding{{Item: "GPU " + g.Address, Where: g.Slot, Name: "present", Value: 0, Limit: ">= 1", Status: burnin.Fail, Cause: "gpu-lost", Fix: "reseat the GPU"}}
	}
	return r
}

func (a *agent) inventory(ctx context.Context, order string) bool {
	i := api.Inventory{Order: order, Hardware: a.cfg.Hardware, Salvage: a.cfg.Salvage, Image: a.image, Addr: "127.0.0.1"}
	if a.image != "" {
		i.Start = a.start
	}
	status, err := a.post(ctx, api.PathInventory, i, nil)
	return err == nil && status < 300
}

func (a *agent) post(ctx context.Context, path string, in, out any) (int, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return 0, err
	}
	return a.call(ctx, http.MethodPost, path, b, out)
}

func (a *agent) call(ctx context.Context, method, path string, body []byte, out any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if a.session != "" {
		req.Header.Set("Authorization", "Bearer "+a.session)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return resp.StatusCode, err
	}
	if out != nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(b, out)
	}
	return resp.StatusCode, err
}
