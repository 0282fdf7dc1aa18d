package service

import "context"

// DefaultTenant is whose everything is where callers are not told apart.
const DefaultTenant = "default"

type tenantKey struct{}

// WithTenant notes whose request ctx belongs to.
func WithTenant(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, tenantKey{}, id)
}

// Tenant is whose request ctx belongs to: [DefaultTenant] when nobody said.
func Tenant(ctx context.Context) string {
	if id, ok := ctx.Value(tenantKey{}).(string); ok {
		return id
	}
	return DefaultTenant
}
