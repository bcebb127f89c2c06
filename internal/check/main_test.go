package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// A step that fails must neither pass for good nor hide the ones behind it.
func TestStepsGoOnAfterAFailure(t *testing.T) {
	for _, tc := range []struct {
		failing string
		only    string
		want    []string
	}{
		{"lint", "", []string{"build", "lint", "test"}},
		{"build", "", []string{"build"}},
		{"", "", []string{"build", "lint", "test"}},
		{"lint", "lint", []string{"lint"}},
		{"", "nosuch", nil},
	} {
		var ran []string
		var steps []step
		for _, name := range []string{"build", "lint", "test"} {
			steps = append(steps, step{name, func(context.Context) error {
				ran = append(ran, name)
				if name == tc.failing {
					return errors.New("on purpose")
				}
				return nil
			}})
		}
		err := runSteps(t.Context(), steps, tc.only)
		if !slices.Equal(ran, tc.want) {
			t.Errorf("%+v: ran %v", tc, ran)
		}
		if (err != nil) != (tc.failing != "" || tc.want == nil) || err != nil && !strings.Contains(err.Error(), tc.failing) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}
