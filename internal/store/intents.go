package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"smelt/inventory"
)

// An Intent is something a person or a rule wants. The conductor carries it
// out or refuses it.
type Intent struct {
	ID     string            `json:"id"` // chosen by the client: repeating it changes nothing
	Node   inventory.NodeID  `json:"node,omitempty"`
	Verb   string            `json:"verb"` // approve reject hold release convert power task-done import retire reinspect
	Actor  string            `json:"actor"`
	Params map[string]string `json:"params,omitempty"`
	At     time.Time         `json:"at"`
}

// IntentResult is what became of an intent.
type IntentResult struct {
	ID    string    `json:"id"`
	OK    bool      `json:"ok"`
	Error string    `json:"error,omitempty"` // why it was refused
	At    time.Time `json:"at"`
}

// AddIntent stores an intent; an ID that is already there changes nothing.
func (s *Store) AddIntent(ctx context.Context, i Intent) error {
	if i.ID == "" || i.Verb == "" || i.Actor == "" {
		return errors.New("store: an intent needs an id, a verb and an actor")
	}
	doc, err := json.Marshal(i)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO intents (id, n, doc) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING`, i.ID, t.number(), string(doc))
		return err
	})
	if err != nil {
		return fmt.Errorf("add intent %s: %w", i.ID, err)
	}
	return nil
}

// PendingIntents returns the intents without a result, oldest first.
func (s *Store) PendingIntents(ctx context.Context) ([]Intent, error) {
	return docs[Intent](ctx, s, "pending intents", `SELECT doc FROM intents WHERE result = '' ORDER BY n`)
}

// IntentResult returns the result of an intent, ErrNotFound while it is pending.
func (s *Store) IntentResult(ctx context.Context, id string) (IntentResult, error) {
	list, err := docs[IntentResult](ctx, s, "result of intent "+id, `SELECT result FROM intents WHERE id = $1 AND result <> ''`, id)
	if err != nil {
		return IntentResult{}, err
	}
	if len(list) == 0 {
		return IntentResult{}, fmt.Errorf("result of intent %s: %w", id, ErrNotFound)
	}
	return list[0], nil
}

// FinishIntent records the result of an intent that changed no node. A second
// result is ErrUsed: the first one was already shown to somebody.
func (s *Store) FinishIntent(ctx context.Context, r IntentResult) error {
	return s.do(ctx, func(t *tx) error { return t.finishIntent(r) })
}
