// What is known of items: titles and categories, asked for once.

const AT_ONCE = 100;

export class Items {
  #known = new Map();
  #service;

  constructor(service) {
    this.#service = service;
  }

  title(id) {
    return this.#known.get(id)?.title ?? id;
  }

  categories(id) {
    return this.#known.get(id)?.categories ?? [];
  }

  /** Takes over what an answer says of items. */
  learn(items) {
    for (const { item_id: id, title, categories } of items) {
      const known = this.#known.get(id);
      this.#known.set(id, {
        title: title ?? known?.title,
        categories: categories ?? known?.categories,
      });
    }
  }

  /** Resolves once the categories of these are known, as far as anybody knows them. */
  async complete(ids) {
    const missing = [...new Set(ids)].filter((id) => !this.#known.get(id)?.categories);
    for (let start = 0; start < missing.length; start += AT_ONCE) {
      const part = missing.slice(start, start + AT_ONCE);
      const { data } = await this.#service.get("items", part.map((id) => ["item_id", id]));
      this.learn(part.map((id) => ({ item_id: id, categories: [] })));
      this.learn(data.items);
    }
  }
}
