//go:build unix && !linux

package devstack

import "syscall"

// Only Linux signals a child when its parent dies. Elsewhere a killed parent leaves its servers running.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}

func waitStopped(int) error { return nil }
