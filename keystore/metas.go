package keystore

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"sync"

	"github.com/provisiond/provisiond/esp/chip"
)

// Lister is a Store that knows how to tell of all its records faster than Metas
// would ask for them. It is optional; Metas asks it.
type Lister interface {
	Metas(ctx context.Context) iter.Seq2[Meta, error]
}

// metasReaders is how many units are asked for at once in a store that does not
// say better: behind a network, one after the other is much slower.
const metasReaders = 16

// Metas gives every record of a store without its key: the units in ascending
// order, the records of each as List gives them. After an error nothing comes. The
// loop may use the store, and may stop early. It holds no more than a few hundred
// units' records, and what Units holds.
func Metas(ctx context.Context, s Store) iter.Seq2[Meta, error] {
	if l, ok := s.(Lister); ok {
		return l.Metas(ctx)
	}
	return ListUnits(ctx, s, metasReaders)
}

// metasAhead is how many units for each reader may wait for one that takes long.
const metasAhead = 8

// ListUnits is Metas for any store: it goes through Units, and so many readers
// call List at the same time. Listers are made of it.
func ListUnits(ctx context.Context, s Store, readers int) iter.Seq2[Meta, error] {
	type answer struct {
		metas []Meta
		err   error
	}
	type question struct {
		unit   chip.MAC
		answer chan<- answer
	}
	return func(yield func(Meta, error) bool) {
		own, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		answers := make(chan (<-chan answer), metasAhead*readers) // in the order of the units
		questions := make(chan question)
		running.Go(func() {
			defer close(answers)
			defer close(questions)
			for unit, err := range s.Units(own) {
				a := make(chan answer, 1)
				select {
				case answers <- a:
				case <-own.Done():
					return
				}
				if err != nil {
					a <- answer{err: err}
					return
				}
				select {
				case questions <- question{unit, a}:
				case <-own.Done():
					a <- answer{err: own.Err()}
					return
				}
			}
		})
		for range readers {
			running.Go(func() {
				for q := range questions {
					metas, err := s.List(own, q.unit)
					if err != nil {
						err = fmt.Errorf("unit %s: %w", q.unit, err)
					}
					q.answer <- answer{metas, err}
				}
			})
		}
		for a := range answers {
			got := <-a
			if err := cmp.Or(ctx.Err(), got.err); err != nil {
				yield(Meta{}, err)
				return
			}
			for _, m := range got.metas {
				if !yield(m, nil) {
					return
				}
			}
		}
		if err := ctx.Err(); err != nil { // Units may have ended early without a word
			yield(Meta{}, err)
		}
	}
}
