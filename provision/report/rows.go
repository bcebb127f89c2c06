package report

import (
	"iter"
	"slices"
)

// rowsPerChunk keeps chunks small enough that growing never copies much.
const rowsPerChunk = 1 << 15

// rows is a list that grows without copying, and is read in sorted order.
type rows[T any] struct {
	chunks [][]T
	n      int
}

func (r *rows[T]) add(v T) {
	last := len(r.chunks) - 1
	if last < 0 || len(r.chunks[last]) == rowsPerChunk {
		first := rowsPerChunk
		if last < 0 {
			first = 16 // most lists are short
		}
		r.chunks = append(r.chunks, make([]T, 0, first))
		last++
	}
	r.chunks[last] = append(r.chunks[last], v)
	r.n++
}

// sorted sorts every chunk in place and merges them. The loop's body must not add.
func (r *rows[T]) sorted(compare func(a, b T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		// A heap of what is left of the chunks; the smallest head is at 0.
		var heap [][]T
		for _, c := range r.chunks {
			slices.SortFunc(c, compare)
			heap = append(heap, c)
		}
		less := func(i, k int) bool { return compare(heap[i][0], heap[k][0]) < 0 }
		down := func(i int) {
			for {
				small := i
				for k := 2*i + 1; k <= 2*i+2 && k < len(heap); k++ {
					if less(k, small) {
						small = k
					}
				}
				if small == i {
					return
				}
				heap[i], heap[small] = heap[small], heap[i]
				i = small
			}
		}
		for i := len(heap)/2 - 1; i >= 0; i-- {
			down(i)
		}
		for len(heap) > 0 {
			if !yield(heap[0][0]) {
				return
			}
			if heap[0] = heap[0][1:]; len(heap[0]) == 0 {
				heap[0] = heap[len(heap)-1]
				heap = heap[:len(heap)-1]
			}
			down(0)
		}
	}
}
