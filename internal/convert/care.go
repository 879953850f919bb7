package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/care"
)

// BMC is what is known of the BMC of a node, kept as a blob beside it.
type BMC struct {
	Node    inventory.NodeID `json:"node"`
	Via     string           `json:"via"`     // its controller
	Adopted bool             `json:"adopted"` // it has a password of its own
	Audit   power.Audit      `json:"audit"`
	Quirks  []power.Quirk    `json:"quirks,omitempty"` // known of its maker, model and firmware
}

// bmcBlob is where BMC is filed.
const bmcBlob = "bmc"

// markDefault names the trial of a maker's credential.
const markDefault = "default-credential"

// defaultWindow is how long a BMC is left alone after a maker's credential was
// tried: accounts lock after three to five attempts, some for good.
const defaultWindow = 24 * time.Hour

// bmcAudit looks at the BMC of the node; it changes nothing there.
func (t *turn) bmcAudit(i store.Intent) (bool, error) {
	v := t.Power[t.n.ID]
	if v == nil {
		return false, errors.New("nothing here reaches its BMC: site.yaml gives it no power driver")
	}
	if t.busy() {
		return false, nil
	}
	t.start("look at its BMC", func(ctx context.Context) func(*turn) error {
		a, err := v.Audit(ctx)
		return func(t *turn) error { return t.audited(i, v, a, err) }
	})
	return false, nil
}

// audited files what was found, and answers the intent.
func (t *turn) audited(i store.Intent, v *power.Verified, a power.Audit, err error) error {
	r := store.IntentResult{ID: i.ID, OK: err == nil, At: t.at}
	if err == nil {
		err = t.whose(&a)
	}
	if err == nil {
		t.distrust(t.n.ID, a)
		err = t.fileBMC(v.String(), a)
	}
	if err != nil {
		r.OK, r.Error = false, err.Error()
	}
	t.change.IntentsDone = append(t.change.IntentsDone, r)
	return nil
}

func (t *turn) fileBMC(via string, a power.Audit) error {
	b := BMC{Node: t.n.ID, Via: via, Audit: a}
	if d, ok := t.Care[t.n.ID]; ok {
		var err error
		if b.Adopted, err = d.Adopted(); err != nil {
			return err
		}
	}
	for _, q := range power.Quirks() {
		if q.Of(a) {
			b.Quirks = append(b.Quirks, q)
		}
	}
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return t.Store.PutBlob(t.ctx, store.Blob{Node: t.n.ID, Name: bmcBlob, Type: "application/json", Data: data, At: t.at})
}

// bmcAdopt gives the BMC a password of its own. With a vendor it begins with
// the credential that the vendor ships, which is tried once a day.
func (t *turn) bmcAdopt(i store.Intent) (bool, error) {
	v := t.Power[t.n.ID]
	d, ok := t.Care[t.n.ID]
	if v == nil || !ok {
		return false, errors.New("it has no BMC that can be adopted: site.yaml gives it no driver redfish or ipmi")
	}
	if err := t.mayTouch(i.Actor); err != nil {
		return false, err
	}
	adopt := care.Device.Adopt
	if vendor := i.Params["vendor"]; vendor != "" {
		known, err := care.DefaultOf(vendor)
		if err != nil {
			return false, err
		}
		switch ok, err := d.Adopted(); {
		case err != nil:
			return false, err
		case ok:
			return false, care.ErrAdopted
		}
		h, err := t.all()
		if err != nil {
			return false, err
		}
		if last := h.mark(markDefault); last != nil && t.at.Sub(last.At) < defaultWindow && last.Evidence["intent"] != i.ID {
			return false, fmt.Errorf("a maker's credential was tried on its BMC at %s, and once a day is all that its lock-out allows: wait until %s, or give the right one: smelt secret set",
				last.At.Format(time.DateTime), last.At.Add(defaultWindow).Format(time.DateTime))
		} else if last == nil || last.Evidence["intent"] != i.ID {
			// Durable before the device hears of it: a crash must not try twice.
			t.add(inventory.Event{Kind: inventory.KindStep, Actor: i.Actor, Reason: "the default credential of " + known.Vendor + " is tried on its BMC, once",
				Evidence: map[string]string{"mark": markDefault, "vendor": known.Vendor, "user": known.User, "intent": i.ID}})
			return false, nil
		} else if !t.asks(i) {
			return false, errors.New("the server ended while a maker's credential was tried; look first: smelt bmc audit " + string(t.n.ID))
		}
		adopt = func(d care.Device, ctx context.Context) (care.Adoption, error) { return d.TryDefault(ctx, known) }
	}
	if t.busy() {
		return false, nil
	}
	actor := i.Actor
	t.start("adopt its BMC", func(ctx context.Context) func(*turn) error {
		var a care.Adoption
		err := v.Alone(ctx, func(ctx context.Context, try power.Try) (err error) {
			d.Try = try
			a, err = adopt(d, ctx)
			return err
		})
		return func(t *turn) error {
			ev := map[string]string{"controller": v.String()}
			if len(a.Notes) > 0 {
				ev["notes"] = strings.Join(a.Notes, "; ")
			}
			if err != nil {
				t.add(inventory.Event{Kind: inventory.KindAlarm, Actor: actor, Reason: err.Error(), Evidence: ev})
				t.change.IntentsDone = append(t.change.IntentsDone, store.IntentResult{ID: i.ID, Error: err.Error(), At: t.at})
				return nil
			}
			t.add(inventory.Event{Kind: inventory.KindStep, Actor: actor, Reason: "its BMC was adopted: the account has a password of its own, which logs in", Evidence: ev})
			return t.audited(i, v, a.Audit, nil)
		}
	})
	return false, nil
}

// asks tells whether this process began the trial that i asks for. One that
// died in the middle may have spent the one login.
func (t *turn) asks(i store.Intent) bool {
	h, err := t.all()
	if err != nil {
		return false
	}
	last := h.mark(markDefault)
	t.mu.Lock()
	defer t.mu.Unlock()
	return last != nil && !last.At.Before(t.begun)
}

// Learned is a lie that a BMC of this site was caught at.
type Learned struct {
	Code   string           `json:"code"` // see power.Evidence.Quirks
	Via    string           `json:"via"`
	Node   inventory.NodeID `json:"node"`
	Vendor string           `json:"vendor,omitempty"`
	Model  string           `json:"model,omitempty"`
	BMC    string           `json:"bmc,omitempty"` // firmware
	Times  int              `json:"times"`
	Last   time.Time        `json:"last"`
}

// learnedBlob is where the lies of the site are filed.
const learnedBlob = "site/quirks"

// learn remembers the lies that the events of a turn name. It is called after
// they are durable; what a crash loses here is still in the events.
func (c *Conductor) learn(ctx context.Context, n inventory.Node, events []inventory.Event) {
	for _, e := range events {
		for _, code := range strings.Fields(e.Evidence["quirks"]) {
			if err := c.learnOne(ctx, n, code, e); err != nil {
				c.Log.Warn("a lie of a controller was not filed", "node", n.ID, "lie", code, "err", err)
			}
		}
	}
}

func (c *Conductor) learnOne(ctx context.Context, n inventory.Node, code string, e inventory.Event) error {
	c.learning.Lock()
	defer c.learning.Unlock()
	all, err := c.Learned(ctx)
	if err != nil {
		return err
	}
	l := Learned{Code: code, Via: e.Evidence["controller"], Node: n.ID}
	at := -1
	for i := range all {
		if all[i].Code == l.Code && all[i].Via == l.Via && all[i].Node == l.Node {
			at, l = i, all[i]
		}
	}
	if b, err := c.Store.Blob(ctx, n.ID, bmcBlob); err == nil {
		var known BMC
		if json.Unmarshal(b.Data, &known) == nil {
			l.Vendor, l.Model, l.BMC = known.Audit.Vendor, known.Audit.Model, known.Audit.Firmware["bmc"]
		}
	}
	l.Times++
	l.Last = e.At
	if at < 0 {
		all = append(all, l)
	} else {
		all[at] = l
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return c.Store.PutBlob(ctx, store.Blob{Name: learnedBlob, Type: "application/json", Data: data, At: e.At})
}

// Learned lists the lies that controllers of this site were caught at.
func (c *Conductor) Learned(ctx context.Context) ([]Learned, error) {
	b, err := c.Store.Blob(ctx, "", learnedBlob)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Learned
	if err := json.Unmarshal(b.Data, &all); err != nil {
		return nil, fmt.Errorf("what controllers were caught at: %w", err)
	}
	return all, nil
}

// BMCs lists what was found at the last look at each BMC.
func (c *Conductor) BMCs(ctx context.Context) ([]BMC, error) {
	nodes, err := c.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var out []BMC
	for _, n := range nodes {
		b, err := c.Store.Blob(ctx, n.ID, bmcBlob)
		if errors.Is(err, store.ErrNotFound) {
			v := c.Power[n.ID]
			if _, ok := c.Care[n.ID]; ok || v != nil && len(v.Keys()) > 0 { // a plug or an outlet is no BMC
				out = append(out, BMC{Node: n.ID, Via: v.String()})
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		var one BMC
		if err := json.Unmarshal(b.Data, &one); err != nil {
			return nil, fmt.Errorf("BMC of %s: %w", n.ID, err)
		}
		out = append(out, one)
	}
	return out, nil
}
