package convert

import (
	"fmt"
	"strings"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"
)

// What an operator asks of a machine that only a person can switch: a task with
// the place. That the machine runs is heard of it, and closes the task; that it
// is off is the word of whoever closes it.

const offByHand = "switch off" // verb of the task whose end is a person's word

// switchByHand opens the task for a power verb and answers the intent with it:
// nothing was switched yet.
func (t *turn) switchByHand(i store.Intent, verb string) error {
	task := inventory.Task{Why: i.Actor + " asked for power " + verb + ", and nothing here can switch it"}
	switch verb {
	case "on":
		task.Verb, task.What, task.Proof = "press", "the power button: it must run", "dhcp"
		task.How = "power supply switch on, then the power button; it is on when it is heard of"
	case "cycle":
		task.Verb, task.What, task.Proof = "press", "the power button: it must restart", "dhcp"
		task.How = "switch it off, wait five seconds, switch it on"
	case "off", "softoff", "soft-off":
		task.Verb, task.What, task.Proof = offByHand, "the machine", "none"
		task.How = "press the power button once and wait; if it does not go off, hold the button for five seconds; then say that this is done"
	default:
		return fmt.Errorf("power verb %q: want on, off, softoff or cycle", verb)
	}
	id := t.open(task)
	t.change.IntentsDone = append(t.change.IntentsDone, store.IntentResult{ID: i.ID, At: t.at,
		Error: fmt.Sprintf("nothing here can switch its power: a person must, by task %s (smelt task show %s)", id, id)})
	return nil
}

// switchedByHand takes a person's word that the machine is off.
func (t *turn) switchedByHand(task inventory.Task, actor string) {
	if task.Verb != offByHand {
		return
	}
	t.add(inventory.Event{Kind: inventory.KindPower, Actor: actor, Reason: "switched off by hand, as " + strings.TrimPrefix(actor, "operator:") + " says",
		Evidence: map[string]string{"task": task.ID, "via": "person"},
		Power:    &inventory.PowerFact{On: power.Off.String(), Via: "a person", At: t.at}})
}
