//go:build !race

package provision_test

const raceFactor = 1
