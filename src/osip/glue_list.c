/* The three functions of osip2's list that change it. They stand in so that the engine hears when a program changes one
 * of the lists of an osip_t; what they do is what osip2's do. */
#include "glue_osip.h"

/* How often a node was taken out behind the first of its list: what has kept the address of a list's last node asks. The
 * library itself hardly ever does it, so the counter is read often and written seldom. */
HIDDEN unsigned long partyline_list_removals;

static void removed_behind_the_first(void)
{
    __atomic_fetch_add(&partyline_list_removals, 1, __ATOMIC_RELAXED);
}

static __node_t **link_at(osip_list_t *list, int at)
{
    __node_t **link = &list->node;

    while (at-- > 0 && *link)
        link = (__node_t **)(void *)&(*link)->next;
    return link;
}

HIDDEN int partyline_list_add(osip_list_t *list, void *element, int at)
{
    __node_t **link, *node;

    if (!list)
        return BAD_PARAMETER;
    node = osip_malloc(sizeof *node);
    if (!node)
        return NO_MEMORY;
    if (list->nb_elt == 0)
        list->node = NULL;
    /* -1 is the end; other negative places behave as in osip2. */
    link = link_at(list, at == -1 || at > list->nb_elt ? list->nb_elt : at < 0 ? 1 : at);
    node->element = element;
    node->next = *link;
    *link = node;
    return ++list->nb_elt;
}

HIDDEN int partyline_list_remove(osip_list_t *list, int at)
{
    __node_t **link, *node;

    if (!list)
        return BAD_PARAMETER;
    if (at < 0 || at >= list->nb_elt)
        return -1;
    if (at > 0)
        removed_behind_the_first();
    link = link_at(list, at);
    node = *link;
    *link = (__node_t *)node->next;
    osip_free(node);
    return --list->nb_elt;
}

HIDDEN osip_list_t *partyline_list_of(osip_list_iterator_t *iterator)
{
    return iterator->actual ? iterator->li : NULL;
}

HIDDEN void *partyline_list_iterator_remove(osip_list_iterator_t *iterator)
{
    if (osip_list_iterator_has_elem(*iterator)) {
        __node_t *node = iterator->actual;

        if (node != iterator->li->node)
            removed_behind_the_first();
        iterator->li->nb_elt--;
        *iterator->prev = (__node_t *)node->next;
        osip_free(node);
        iterator->actual = *iterator->prev;
    }
    return osip_list_iterator_has_elem(*iterator) ? iterator->actual->element : NULL;
}
