package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

// want is how the demo's machines must end. A demo in which nothing fails
// shows nothing: rig-c has a card in an x1 slot that its class does not allow.
var want = map[inventory.NodeID]inventory.State{
	"srv-a": inventory.InService,
	"srv-b": inventory.InService,
	"rig-c": inventory.NeedsWork,
}

// Demo converts the lab's machines as an operator would, through the public
// API, and returns nil only if every machine ended as it should and the
// cluster ran a job.
func (l *Lab) Demo(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	view := newView(l.opts.Out, want)
	defer view.close()

	view.say("Switching on three machines that have no Smelt on them.")
	if err := l.PlugIn(ctx); err != nil {
		return err
	}
	seen := map[inventory.NodeID]inventory.State{}
	asked, saved := map[inventory.NodeID]bool{}, map[inventory.NodeID]bool{}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := l.client.Nodes(ctx)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("ask the server for its nodes: %w", err)
		}
		for _, v := range list.Items {
			id := v.Node.ID
			if _, ours := want[id]; !ours {
				continue
			}
			view.show(v)
			if s := v.Node.Salvage; s != nil && !saved[id] {
				saved[id] = true
				view.say("%s: was %s worker %q; saved %s with secrets redacted.", id, s.MinerOS, s.WorkerName,
					strings.Join(slices.Sorted(maps.Keys(s.Files)), ", "))
			}
			if seen[id] != v.Node.State {
				seen[id] = v.Node.State
				l.tell(view, v)
			}
			if v.Node.State == inventory.Inspected && v.Node.Verdict != nil && v.Node.Verdict.Answer == "convert" && !asked[id] {
				asked[id] = true
				view.say("%s: an operator approves: wipe its disk, install %s.", id, l.opts.Image)
				if _, err := l.client.Do(ctx, id, "approve", map[string]string{"confirm": string(id)}); err != nil {
					return fmt.Errorf("approve %s: %w", id, err)
				}
			}
		}
		if done, err := ended(seen); done {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not done after %s: %s", timeout, states(seen))
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// ended tells whether nothing more will happen by itself, and whether that is
// what should have happened.
func ended(seen map[inventory.NodeID]inventory.State) (bool, error) {
	var wrong []string
	for id, w := range want {
		switch s := seen[id]; {
		case s == w:
		case s == inventory.NeedsWork || s == inventory.InService || s == inventory.Retired || s == inventory.Rejected:
			wrong = append(wrong, fmt.Sprintf("%s is %s, want %s", id, s, w))
		default:
			return false, nil
		}
	}
	if len(wrong) > 0 {
		return true, errors.New(strings.Join(wrong, "; "))
	}
	return true, nil
}

func states(seen map[inventory.NodeID]inventory.State) string {
	var b []string
	for _, id := range slices.Sorted(maps.Keys(want)) {
		s := "not seen"
		if v, ok := seen[id]; ok {
			s = v.String()
		}
		b = append(b, string(id)+" "+s)
	}
	return strings.Join(b, ", ")
}

// tell prints what is worth a line when a node changed state.
func (l *Lab) tell(view *view, v api.NodeView) {
	n := v.Node
	sim := ""
	if v.Simulated {
		sim = " (cards simulated)"
	}
	switch n.State {
	case inventory.Discovered:
		view.say("%s: discovered by its DHCP at %s; nothing is written.", n.ID, n.Spec.Position)
	case inventory.Inspected:
		if n.Verdict != nil {
			view.say("%s: triage against %s: %s%s.", n.ID, n.Verdict.Target, n.Verdict.Answer, sim)
		}
	case inventory.NeedsWork:
		view.say("%s: needs work: %s", n.ID, n.Failure.Cause)
		for _, t := range v.Tasks {
			if t.Open() {
				view.say("%s: task: %s. Why: %s", n.ID, t, t.Why)
			}
		}
	case inventory.InService:
		view.say("%s: in service%s.", n.ID, sim)
	}
}

// Cluster shows that the nodes really joined: sinfo must list them idle (a node
// still cleans up after its proof job for some seconds) and srun must run a job
// on one.
func (l *Lab) Cluster(ctx context.Context) error {
	var nodes []string
	for id, w := range want {
		if w == inventory.InService {
			nodes = append(nodes, string(id))
		}
	}
	var out string
	for deadline := time.Now().Add(time.Minute); ; {
		var err error
		if out, err = l.run(l.slurm, "sinfo", "--Node", "--format=%N %T %c %m %E"); err != nil {
			return err
		}
		busy := slices.IndexFunc(nodes, func(n string) bool { return !idle(out, n) })
		if busy < 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("slurm does not show %s idle:\n%s", nodes[busy], out)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	fmt.Fprintf(l.opts.Out, "\n$ sinfo\n%s", out)
	slices.Sort(nodes)
	argv := []string{"srun", "--nodelist=" + nodes[0], "--nodes=1", "--time=1", "--immediate=60", "--chdir=/tmp", "hostname"}
	out, err := l.run(l.slurm, argv...)
	if err != nil {
		return err
	}
	fmt.Fprintf(l.opts.Out, "$ %s\n%s", strings.Join(argv, " "), out)
	if strings.TrimSpace(out) != nodes[0] {
		return fmt.Errorf("the job on %s printed %q", nodes[0], out)
	}
	return nil
}

// idle tells whether sinfo lists the node as idle.
func idle(sinfo, node string) bool {
	for line := range strings.Lines(sinfo) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == node && f[1] == "idle" {
			return true
		}
	}
	return false
}

// Summary prints, for each machine, the time in each state, its reports and
// its open tasks.
func (l *Lab) Summary(ctx context.Context, w io.Writer) error {
	for _, id := range slices.Sorted(maps.Keys(want)) {
		v, err := l.client.Node(ctx, id)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s at %s: %s", id, v.Node.Spec.Position, v.Node.State)
		if v.Simulated {
			fmt.Fprint(w, "  [its cards are SIMULATED]")
		}
		fmt.Fprintln(w)
		for _, s := range inventory.States() {
			if d, ok := v.Spent[s.String()]; ok && inventory.Table[s].Actor != "nobody" {
				fmt.Fprintf(w, "  %-12s %s\n", s, d)
			}
		}
		for _, r := range v.Reports {
			fmt.Fprintf(w, "  report       %s  %s%s\n", r.Answer, l.URL(), r.HTML)
		}
		for _, t := range v.Tasks {
			if t.Open() {
				fmt.Fprintf(w, "  task         %s\n               %s\n", t, t.Why)
			}
		}
	}
	return nil
}
