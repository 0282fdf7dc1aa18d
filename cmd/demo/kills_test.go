package main

import "testing"

func TestEachKillHasOrdersOfItsOwn(t *testing.T) {
	for orders := 1; orders <= 60; orders++ {
		for kills := range orders {
			k := killer{orders: orders, kills: kills}
			before := 0
			for n := range kills + 1 {
				if k.released(n) <= before {
					t.Fatalf("%d orders, %d kills: portion %d is empty", orders, kills, n)
				}
				before = k.released(n)
			}
			if before != orders {
				t.Fatalf("%d orders, %d kills: %d are let through", orders, kills, before)
			}
		}
	}
}
