package convert

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"smelt/images"
	"smelt/inventory/triage"
)

// A variant is an image that a name may stand for.
type variant struct {
	digest images.Digest
	name   string // of its recipe
	size   int64  // of the disk image
	arch   string // GOARCH word
	stack  triage.Stack
}

// variants are the images that a name of site.yaml may stand for: the image
// itself, or one for each variant of its recipe. A name that stands for none
// is images.ErrNotFound.
func (c *Conductor) variants(name string) ([]variant, error) {
	titles, err := c.Images.Titles(name)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	if !slices.Contains(titles, name) {
		titles = append(titles, name) // a digest, perhaps
	}
	var out []variant
	for _, title := range titles {
		d, err := c.Images.Resolve(title)
		if title == name && errors.Is(err, images.ErrNotFound) && len(titles) > 1 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", title, err)
		}
		v, err := c.variant(d)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", title, err)
		}
		// ai.next may be a recipe of its own, and no variant of ai. A channel
		// may stand before the name: canary/ai.
		if title == name || v.name == name[strings.Index(name, "/")+1:] {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("image %q: %w; smelt image list shows what is there", name, images.ErrNotFound)
	}
	return out, nil
}

// variant reads a manifest, once: it never changes, and a long one takes its time.
func (c *Conductor) variant(d images.Digest) (variant, error) {
	if v, ok := c.known.Load(d); ok {
		return v.(variant), nil
	}
	m, err := c.Images.Manifest(d)
	if err != nil {
		return variant{}, err
	}
	v := variant{digest: d, name: m.Name, size: m.Size, arch: m.Arch}
	if v.stack, err = stackOf(m); err != nil {
		return variant{}, err
	}
	c.known.Store(d, v)
	return v, nil
}

// stackOf is what an image brings for GPUs, in the words of triage.
func stackOf(m images.Manifest) (triage.Stack, error) {
	s := triage.Stack{Image: m.Title()}
	if m.Driver == nil {
		return s, nil
	}
	var err error
	if s.Branch, err = strconv.Atoi(m.Driver.Branch()); err != nil {
		return s, fmt.Errorf("driver %q: %w", m.Driver.Version, err)
	}
	s.Modules = m.Driver.Modules
	return s, nil
}

// variantFor chooses the image of a node: the variant whose driver runs all
// its cards. Force takes the one that was named, whatever it runs.
func (t *turn) variantFor(name string, force bool) (variant, error) {
	all, err := t.variants(name)
	if err != nil {
		return variant{}, err
	}
	if force && len(all) == 1 {
		return all[0], nil
	}
	hw := *t.n.Hardware
	if !t.wantsGPUs() {
		hw.GPUs = nil // what is in it shows a picture, no more
	}
	i, err := triage.PickFor(stacksOf(all), hw)
	if err != nil {
		return variant{}, fmt.Errorf("image %q does not run its cards: %w", name, err)
	}
	return all[i], nil
}

// wantsGPUs tells whether the node is to work with GPUs.
func (t *turn) wantsGPUs() bool {
	_, target, err := t.target()
	return err != nil || max(target.GPUs, t.Site.Classes[t.n.Spec.Class].GPUs) > 0
}

func stacksOf(all []variant) []triage.Stack {
	var out []triage.Stack
	for _, v := range all {
		out = append(out, v.stack)
	}
	return out
}

// imageStacks is what triage may know of the image that the node would get:
// nothing while there is no such image, which is not the node's fault.
func (t *turn) imageStacks() []triage.Stack {
	name := cmp.Or(t.n.Spec.Image, t.Site.Classes[t.n.Spec.Class].Image)
	if name == "" {
		return nil
	}
	all, err := t.variants(name)
	if err != nil {
		return nil // the plan says why
	}
	return stacksOf(all)
}
