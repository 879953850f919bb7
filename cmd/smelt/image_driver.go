package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"smelt/images/build"
	"smelt/internal/config"
)

// checkCards says what does not go together in the drivers of a recipe's
// images, and holds them against the cards that the classes of the site file
// expect on nodes with these images: better to learn it from a lock than from a
// hall full of nodes in needs-work. It returns which file it read; "" where
// there is none and none was asked for.
func checkCards(cmd *cobra.Command, r build.Recipe) (string, error) {
	if err := r.Covers(nil); err != nil {
		return "", err
	}
	flag := cmd.Flag("site")
	file := flag.Value.String()
	site, err := config.Load(file, known())
	if errors.Is(err, fs.ErrNotExist) && !flag.Changed {
		return "", nil
	}
	if err != nil {
		return file, fmt.Errorf("%s, whose cards the driver must run: %w", file, err)
	}
	var wrong []error
	byImage := map[string]map[string]string{}
	for name, c := range site.Classes {
		if c.GPUModel == "" {
			continue
		}
		if byImage[c.Image] == nil {
			byImage[c.Image] = map[string]string{}
		}
		byImage[c.Image][name] = c.GPUModel
	}
	wrong = append(wrong, r.Covers(byImage[r.Name]))
	for _, one := range r.Images() {
		if one.Title() != r.Name {
			wrong = append(wrong, one.Covers(byImage[one.Title()]))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return file, fmt.Errorf("the cards of %s: %w", file, err)
	}
	return file, nil
}
